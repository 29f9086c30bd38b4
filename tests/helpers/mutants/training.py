"""Faults in the losses, rates and steps of both stages."""

from helpers.mutants.fault import Fault

PARTS = "bench/test_speed.py::test_accumulated_step_equals_the_step_on_the_whole_batch"
TURNS = (
    "train/test_adversarial.py::"
    "test_g_and_d_alternate_and_one_g_step_per_period_has_the_full_weight"
)
RATES = "train/test_adversarial.py::test_learning_rates_of_g_and_d_follow_the_published_schedule"
SUM = "train/test_adversarial.py::test_losses_of_g_and_d_are_the_weighted_sums_of_their_terms"
STAGE_ONE_RATES = "train/test_base_learner.py::test_rates_in_force_are_the_published_ones"
GROUPS = (
    "train/test_optimizers.py::test_every_trainable_parameter_is_in_one_group_at_the_published_rate"
)

TRAINING = [
    Fault(
        "softmax of the distillation over the batch",
        "model/losses.py",
        "correlation.flatten(1).softmax(1)",
        "correlation.flatten(1).softmax(0)",
        "model/test_parts.py::test_distillation_is_the_kl_divergence_over_positions_of_each_scale",
    ),
    Fault(
        "real label without smoothing",
        "model/amformer/losses.py",
        "REAL_LABEL = 0.9",
        "REAL_LABEL = 1.0",
        "model/test_parts.py::test_adversarial_losses_of_g_and_d_equal_their_formulas",
    ),
    Fault(
        "G trained towards the fake label",
        "model/amformer/losses.py",
        "for d in outputs], 1.0)",
        "for d in outputs], 0.0)",
        "model/test_parts.py::test_adversarial_losses_of_g_and_d_equal_their_formulas",
    ),
    Fault(
        "part maps compared with themselves",
        "model/amformer/losses.py",
        "offset=1",
        "offset=0",
        "model/test_parts.py::test_diversity_is_the_mean_cosine_of_distinct_chosen_part_maps",
    ),
    Fault(
        "ignore label counted in the cross entropy",
        "model/losses.py",
        'ignore_index=IGNORE, reduction="sum"',
        'ignore_index=-100, reduction="sum"',
        "model/test_parts.py::test_cross_entropy_counts_only_labeled_pixels",
    ),
    Fault(
        "steps of G and D swapped",
        "util/train/adversarial.py",
        "if in_epoch % 2:",
        "if not in_epoch % 2:",
        TURNS,
    ),
    Fault(
        "adversarial period off by one",
        "util/train/adversarial.py",
        "== train.adversarial_period - 1",
        "== 0",
        TURNS,
    ),
    Fault(
        "part maps the same in every iteration",
        "util/train/adversarial.py",
        "default_rng((seed, iteration))",
        "default_rng((seed, 0))",
        "train/test_ranks.py::"
        "test_part_maps_of_the_diversity_loss_are_a_function_of_seed_and_iteration",
    ),
    Fault(
        "learning rate schedule off by one",
        "util/train/optimizers.py",
        "(1 - (iteration + 1) / total)",
        "(1 - iteration / total)",
        RATES,
    ),
    Fault(
        "learning rate of D not set",
        "util/train/trainer.py",
        "set_lr(optimizer, rate)",
        "set_lr(self.main_optimizer, rate)",
        RATES,
    ),
    Fault(
        "weight decay of G dropped",
        "util/train/optimizers.py",
        'AdamW(settings("G"), betas=(0.9, 0.999), weight_decay=decay',
        'AdamW(settings("G"), betas=(0.9, 0.999), weight_decay=0.0',
        GROUPS,
    ),
    Fault(
        "biases of D's norms at the learning rate of the transformers",
        "util/train/optimizers.py",
        '"other" if name.endswith(".bias") else "transformer"',
        '"transformer"',
        GROUPS,
    ),
    Fault(
        "D's step through a graph of G",
        "util/train/adversarial.py",
        "with torch.no_grad(), self.autocast():",
        "with self.autocast():",
        SUM,
    ),
    Fault(
        "losses returned with their graph",
        "util/train/trainer.py",
        "key: value.detach() for key",
        "key: value for key",
        SUM,
    ),
    Fault(
        "weight of the adversarial loss dropped",
        "util/train/adversarial.py",
        'weight * terms["adversarial_g"]',
        'terms["adversarial_g"]',
        SUM,
    ),
    Fault(
        "weight of the diversity loss dropped",
        "util/train/adversarial.py",
        'self.cfg.diversity_weight * terms["diversity"]',
        'terms["diversity"]',
        SUM,
    ),
    Fault(
        "only the gradient of the last part of a batch",
        "util/train/trainer.py",
        "[a + b for a, b in zip(gradients, new, strict=True)]",
        "[b for a, b in zip(gradients, new, strict=True)]",
        f"{PARTS}[G]",
    ),
    Fault(
        "part of a batch weighted like the whole batch",
        "util/train/trainer.py",
        "return len(part) / len(batch)",
        "return 1.0",
        f"{PARTS}[D]",
    ),
    Fault(
        "ignored pixels counted in the loss",
        "util/train/trainer.py",
        "(mask != IGNORE).sum()",
        "(mask >= 0).sum()",
        "train/test_adversarial.py::test_segmentation_losses_are_means_over_the_labelled_pixels",
    ),
    Fault(
        "sum instead of mean over the levels",
        "util/train/adversarial.py",
        "torch.stack(levels).mean()",
        "torch.stack(levels).sum()",
        "train/test_adversarial.py::test_segmentation_losses_are_means_over_the_labelled_pixels",
    ),
    Fault(
        "step taken although the loss is not finite",
        "util/train/trainer.py",
        "if distributed.all_reduce_sum((~good).float()):",
        "if False:",
        "train/test_adversarial.py::test_nonfinite_loss_leaves_every_parameter_unchanged",
    ),
    Fault(
        "step taken although a gradient is not finite",
        "util/train/trainer.py",
        "flat.norm().isfinite()",
        "torch.isfinite(loss)",
        "train/test_adversarial.py::test_nonfinite_gradient_leaves_every_parameter_unchanged",
    ),
    Fault(
        "base learner of COCO at a tenth of the published rate",
        "config/_base_/coco.yaml",
        "lr: 0.0025",
        "lr: 0.00025",
        STAGE_ONE_RATES,
    ),
    Fault(
        "head of the base learner at the rate of the backbone",
        "util/train/base_learner.py",
        '"multiplier": base.head_lr_multiplier',
        '"multiplier": 1.0',
        STAGE_ONE_RATES,
    ),
    Fault(
        "last epoch of the base learner kept",
        "util/train/run.py",
        "self._is_best = miou > self.best",
        "self._is_best = True",
        "train/test_base_learner.py::test_best_epoch_is_kept",
    ),
]  # fmt: skip
