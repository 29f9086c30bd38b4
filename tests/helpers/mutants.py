"""Hand-made faults in the numeric core, each with the test that must catch it.

None of these tests needs the images of a real data set.
"""

from dataclasses import dataclass

PLAIN = "model/test_plain.py::test_every_array_equals_the_plain_formulation"
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


@dataclass(frozen=True)
class Fault:
    """Replace `old` by `new` in `file`; then `test` (in tests/) must fail."""

    name: str
    file: str
    old: str
    new: str
    test: str


FAULTS = [
    Fault(
        "softmax of the distillation over the batch",
        "model/amformer/losses.py",
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
        "_bce(d.fake_score, 1.0)",
        "_bce(d.fake_score, 0.0)",
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
        "model/amformer/losses.py",
        "ignore_index=IGNORE",
        "ignore_index=-100",
        "model/test_parts.py::test_cross_entropy_counts_only_labeled_pixels",
    ),
    Fault(
        "softmax of the mining attention over the other axis",
        "model/amformer/attention.py",
        'over_keys=self.softmax == "key"',
        'over_keys=self.softmax != "key"',
        f"{PLAIN}[timm/tf_efficientnet_lite0-1-query]",
    ),
    Fault(
        "temperature of the correlation dropped",
        "model/amformer/attention.py",
        "/ (q.shape[1] * TEMPERATURE)",
        "/ q.shape[1]",
        "model/test_folding.py -k correlation",
    ),
    Fault(
        "backward of the mining attention without its inner sum",
        "model/amformer/attention.py",
        "inner -= (value * dvalue)",
        "inner -= 0 * (value * dvalue)",
        "model/test_folding.py -k mining",
    ),
    Fault(
        "initial mask keeps what is below the threshold",
        "model/amformer/clue.py",
        "cosine < self.threshold",
        "cosine > self.threshold",
        "model/test_folding.py::test_clue_equals_the_direct_formulas",
    ),
    Fault(
        "threshold of the initial mask ten times too high",
        "model/amformer/clue.py",
        "threshold: float = 0.7",
        "threshold: float = 7.0",
        "model/test_folding.py::test_clue_equals_the_direct_formulas",
    ),
    Fault(
        "prior not multiplied by ten",
        "model/amformer/clue.py",
        "prior * 10",
        "prior",
        "model/test_folding.py::test_clue_equals_the_direct_formulas",
    ),
    Fault(
        "maximum instead of mean of the shots' priors",
        "model/prior.py",
        "for shot in episode]).mean(0)",
        "for shot in episode]).amax(0)",
        "model/test_folding.py::test_prior_is_from_f5_then_f4_averaged_over_shots",
    ),
    Fault(
        "background's similarity of 0 left out of the prior",
        "model/prior.py",
        "-torch.inf if mask_is_full else 0.0",
        "-torch.inf",
        "model/test_folding.py -k similarity",
    ),
    Fault(
        "Gram distance not divided by the channels",
        "model/prior.py",
        ".norm(dim=2) / query.shape[1]",
        ".norm(dim=2)",
        "model/test_folding.py::test_gram_distance_is_between_each_query_and_each_of_its_shots",
    ),
    Fault(
        "support not multiplied by its mask",
        "model/encoder.py",
        "image * (mask == 1)[:, None]",
        "image * (mask > 0)[:, None]",
        "model/test_model.py::test_support_is_multiplied_by_its_mask_before_the_backbone",
    ),
    Fault(
        "dropout of the base learner off",
        "model/encoder.py",
        "mode and self.keep_dropout",
        "False",
        "model/test_model.py::test_base_dropout_acts_only_in_training_and_only_if_configured",
    ),
    Fault(
        "class of the episode left in the base probability",
        "model/ensemble.py",
        "class_index + 1] = 0",
        "class_index] = 0",
        "model/test_parts.py::test_base_probability_leaves_out_the_class_of_the_episode",
    ),
    Fault(
        "K-shot weights from unsorted distances",
        "model/ensemble.py",
        "distances.sort(dim=1).values",
        "distances",
        "model/test_parts.py::test_shot_weights_come_from_sorted_distances_and_apply_in_shot_order",
    ),
    Fault(
        "hard mask at another threshold",
        "model/ensemble.py",
        "foreground > 0.5",
        "foreground > 0.6",
        "model/test_parts.py::test_ensemble_merges_scores_with_psi_and_background_with_base_learner",
    ),
    Fault(
        "base learner and background swapped",
        "model/ensemble.py",
        "torch.cat((background, base), dim=1)",
        "torch.cat((base, background), dim=1)",
        "model/test_parts.py::test_ensemble_merges_scores_with_psi_and_background_with_base_learner",
    ),
    Fault(
        "D scores the part that differs least",
        "model/amformer/detail_mining.py",
        ".argmin(1)",
        ".argmax(1)",
        "model/test_parts.py::test_d_scores_the_part_whose_fake_and_real_forms_differ_most",
    ),
    Fault(
        "D's tokens not masked",
        "model/amformer/detail_mining.py",
        "tokens = tokens * mask[..., None]",
        "tokens = tokens * 1",
        "model/test_parts.py::test_d_scores_the_part_whose_fake_and_real_forms_differ_most",
    ),
    Fault(
        "pyramid ordered from fine to coarse",
        "model/amformer/object_mining.py",
        "scales.insert(0, x)",
        "scales.append(x)",
        f"{PLAIN}[timm/tf_efficientnet_lite0-1-query]",
    ),
    Fault(
        "second refinement starts from the first features",
        "model/amformer/object_mining.py",
        "mining(features[-1], masks[-1], clue.prior)",
        "mining(features[0], masks[-1], clue.prior)",
        f"{PLAIN}[timm/tf_efficientnet_lite0-1-query]",
    ),
    Fault(
        "corners not aligned",
        "model/resize.py",
        'mode="bilinear", align_corners=True',
        'mode="bilinear", align_corners=False',
        "model/test_resize_properties.py::test_resizing_equals_the_formula_and_torch",
    ),
    Fault(
        "taps of the folded convolution mirrored",
        "model/folding.py",
        "rows[d : d + length]",
        "rows[2 - d : 2 - d + length]",
        "model/test_folding.py -k enlarged",
    ),
    Fault(
        "shift of a folded batch norm dropped",
        "model/folding.py",
        "(scale * start + shift)",
        "(scale * start)",
        "model/test_folding.py -k frozen_batch_norms",
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
        "util/train/adversarial.py",
        "set_lr(self.optimizer_d, rate)",
        "pass",
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
        "util/train/adversarial.py",
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
        "util/train/adversarial.py",
        "[a + b for a, b in zip(gradients, new, strict=True)]",
        "[b for a, b in zip(gradients, new, strict=True)]",
        f"{PARTS}[G]",
    ),
    Fault(
        "part of a batch weighted like the whole batch",
        "util/train/adversarial.py",
        "return len(part) / len(batch)",
        "return 1.0",
        f"{PARTS}[D]",
    ),
    Fault(
        "ignored pixels counted in the loss",
        "util/train/adversarial.py",
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
        "util/train/adversarial.py",
        "if distributed.all_reduce_sum((~good).float()):",
        "if False:",
        "train/test_adversarial.py::test_nonfinite_loss_leaves_every_parameter_unchanged",
    ),
    Fault(
        "step taken although a gradient is not finite",
        "util/train/adversarial.py",
        "torch.nn.utils.get_total_norm(gradients).isfinite()",
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
        "base learner on the fold's list",
        "util/config/schema.py",
        '"all", "training images: all',
        '"fold", "training images: all',
        "data/test_protocol.py::"
        "test_base_learner_gets_every_image_with_novel_objects_as_background",
    ),
    Fault(
        "last epoch of the base learner kept",
        "util/train/run.py",
        "self._is_best = miou > self.best",
        "self._is_best = True",
        "train/test_base_learner.py::test_best_epoch_is_kept",
    ),
    Fault(
        "crop of the base learner never drawn again",
        "util/data/transform.py",
        "range(1 + self.REDRAWS)",
        "range(1)",
        "data/test_protocol.py::test_crop_is_drawn_again_until_it_holds_most_of_label_1",
    ),
    Fault(
        "projections of G start from the truncated normal",
        "model/amformer/system.py",
        'if projection_init == "trunc_normal":',
        "if True:",
        "model/test_initial_weights.py::test_every_weight_starts_with_the_published_deviation",
    ),
    Fault(
        "queries of the test permuted",
        "util/data/episodes.py",
        'in_list = self.order == "list"',
        "in_list = False",
        "data/test_protocol.py::test_queries_follow_the_list_whatever_the_seed",
    ),
    Fault(
        "published configs with permuted queries",
        "util/config/schema.py",
        '"list", "queries: the list\'s own order',
        '"permuted", "queries: the list\'s own order',
        "data/test_protocol.py -k published_configs_take",
    ),
    Fault(
        "box without its far row and column",
        "util/data/weak.py",
        "x + box_width + 1, y + box_height + 1",
        "x + box_width, y + box_height",
        "data/test_weak.py::test_bbox_is_the_published_box_of_every_object",
    ),
    Fault(
        "ignored pixels turned into object inside a box",
        "util/data/weak.py",
        "(drawn == 1) & (label != IGNORE)",
        "drawn == 1",
        "data/test_weak.py::test_bbox_is_the_published_box_of_every_object",
    ),
    Fault(
        "images with novel objects kept in training",
        "util/data/lists.py",
        'data.novel_in_training == "drop"',
        'data.novel_in_training == "x"',
        "data/test_protocol.py -k dropped_or_their_objects",
    ),
    Fault(
        "ignore label counted in the IoU",
        "util/evaluate/metrics.py",
        "2 * target.int() + prediction.int()",
        "2 * target.int().clamp(max=1) + prediction.int()",
        "evaluate/test_metric_properties.py::test_binary_totals_equal_a_confusion_matrix_and_add_up_over_shards",
    ),
    Fault(
        "ignore label counted by the base learner's IoU",
        "util/evaluate/metrics.py",
        "target.int() * labels + prediction.int()",
        "target.int().clamp(max=labels - 1) * labels + prediction.int()",
        "evaluate/test_metric_properties.py::test_base_totals_equal_a_confusion_matrix_and_add_up_over_shards",
    ),
    Fault(
        "background among the base classes",
        "util/evaluate/metrics.py",
        "        return iou.nanmean().item() if not iou.isnan().all() else 0.0",
        "        return self.mean_scores()[0]",
        "evaluate/test_metric_properties.py::test_base_totals_equal_a_confusion_matrix_and_add_up_over_shards",
    ),
    Fault(
        "intersection twice in the union",
        "util/evaluate/metrics.py",
        "counts.sum(0) + there - hits",
        "counts.sum(0) + there",
        "evaluate/test_metric_properties.py::test_base_totals_equal_a_confusion_matrix_and_add_up_over_shards",
    ),
    Fault(
        "base classes counted that no target holds",
        "util/evaluate/metrics.py",
        "self.totals[1:, 2] > 0, iou, torch.nan",
        "self.totals[1:, 1] > 0, iou, torch.nan",
        "evaluate/test_metrics.py::test_base_miou_leaves_out_background_and_absent_classes",
    ),
    Fault(
        "pixels at the threshold left out",
        "util/evaluate/metrics.py",
        "self.totals.flip(-1).cumsum(-1).flip(-1)",
        "(self.totals.flip(-1).cumsum(-1).flip(-1) - self.totals)",
        "evaluate/test_metrics.py::test_best_threshold_is_the_best_of_all_thresholds",
    ),
    Fault(
        "totals of the other ranks ignored",
        "util/evaluate/metrics.py",
        "    for each in totals:\n        distributed.all_reduce_sum(each.totals)",
        "    pass",
        "evaluate/test_metrics.py::test_totals_are_summed_over_the_ranks",
    ),
]  # fmt: skip
