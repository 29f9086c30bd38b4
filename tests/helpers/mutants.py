"""Hand-made faults in the numeric core, and for each the test that must catch it.

All of these tests run without `../shared`.
"""

from dataclasses import dataclass

PLAIN = "model/test_plain.py::test_every_array_is_that_of_the_plain_formulation"
PARTS = "bench/test_speed.py::test_a_batch_in_parts_is_the_same_step"
TURNS = (
    "train/test_adversarial.py::"
    "test_g_and_d_alternate_and_one_g_step_per_period_has_the_full_weight"
)
RATES = "train/test_adversarial.py::test_learning_rates_of_g_and_d_follow_the_published_schedule"
SUM = "train/test_adversarial.py::test_losses_of_g_and_d_are_the_weighted_sums_of_their_terms"
GROUPS = (
    "train/test_optimizers.py::test_every_trainable_parameter_is_in_one_group_at_the_published_rate"
)


@dataclass(frozen=True)
class Fault:
    """`old` becomes `new` in `file`; `test` (in tests/) must fail."""

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
        "model/test_parts.py::test_distillation_is_the_divergence_over_the_positions_of_each_scale",
    ),
    Fault(
        "real label without smoothing",
        "model/amformer/losses.py",
        "REAL_LABEL = 0.9",
        "REAL_LABEL = 1.0",
        "model/test_parts.py::test_g_wants_its_mask_to_be_taken_for_real_and_d_tells_them_apart",
    ),
    Fault(
        "G descends towards a fake mask",
        "model/amformer/losses.py",
        "_bce(d.fake_score, 1.0)",
        "_bce(d.fake_score, 0.0)",
        "model/test_parts.py::test_g_wants_its_mask_to_be_taken_for_real_and_d_tells_them_apart",
    ),
    Fault(
        "part maps compared with themselves",
        "model/amformer/losses.py",
        "offset=1",
        "offset=0",
        "model/test_parts.py::test_diversity_is_the_mean_cosine_of_different_chosen_maps",
    ),
    Fault(
        "ignore label counted in the cross entropy",
        "model/amformer/losses.py",
        "ignore_index=IGNORE",
        "ignore_index=-100",
        "model/test_parts.py::test_the_cross_entropy_counts_labelled_pixels_alone",
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
        "model/test_folding.py::test_the_clue_is_the_direct_formula",
    ),
    Fault(
        "threshold of the initial mask ten times too high",
        "model/amformer/clue.py",
        "threshold: float = 0.7",
        "threshold: float = 7.0",
        "model/test_folding.py::test_the_clue_is_the_direct_formula",
    ),
    Fault(
        "prior not weighed by ten",
        "model/amformer/clue.py",
        "prior * 10",
        "prior",
        "model/test_folding.py::test_the_clue_is_the_direct_formula",
    ),
    Fault(
        "largest prior of the shots in place of their mean",
        "model/prior.py",
        "for shot in episode]).mean(0)",
        "for shot in episode]).amax(0)",
        "model/test_folding.py::test_the_prior_is_that_of_f5_then_f4_averaged_over_shots",
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
        "model/test_folding.py::test_the_gram_distance_is_that_of_each_query_to_each_of_its_shots",
    ),
    Fault(
        "support not multiplied by its mask",
        "model/encoder.py",
        "image * (mask == 1)[:, None]",
        "image * (mask > 0)[:, None]",
        "model/test_model.py::test_a_support_is_multiplied_by_its_mask_before_the_backbone",
    ),
    Fault(
        "dropout of the base learner off",
        "model/encoder.py",
        "mode and self.keep_dropout",
        "False",
        "model/test_model.py::test_base_dropout_is_on_in_training_only_and_only_if_asked_for",
    ),
    Fault(
        "base class left in",
        "model/ensemble.py",
        "class_index + 1] = 0",
        "class_index] = 0",
        "model/test_parts.py::test_the_episodes_own_class_is_left_out_of_the_base_probability",
    ),
    Fault(
        "K-shot weights from unsorted distances",
        "model/ensemble.py",
        "distances.sort(dim=1).values",
        "distances",
        "model/test_parts.py::test_weights_of_the_shots_come_from_sorted_distances_and_go_in_shot_order",
    ),
    Fault(
        "hard mask at another threshold",
        "model/ensemble.py",
        "foreground > 0.5",
        "foreground > 0.6",
        "model/test_parts.py::test_scores_are_merged_with_psi_and_the_background_with_the_base_learner",
    ),
    Fault(
        "base learner and background swapped",
        "model/ensemble.py",
        "torch.cat((background, base), dim=1)",
        "torch.cat((base, background), dim=1)",
        "model/test_parts.py::test_scores_are_merged_with_psi_and_the_background_with_the_base_learner",
    ),
    Fault(
        "D judges the part that differs least",
        "model/amformer/detail_mining.py",
        ".argmin(1)",
        ".argmax(1)",
        "model/test_parts.py::test_d_judges_the_part_whose_two_forms_differ_most",
    ),
    Fault(
        "D's tokens not masked",
        "model/amformer/detail_mining.py",
        "tokens = tokens * mask[..., None]",
        "tokens = tokens * 1",
        "model/test_parts.py::test_d_judges_the_part_whose_two_forms_differ_most",
    ),
    Fault(
        "scales of the pyramid from fine to coarse",
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
        "system/test_properties.py::test_the_three_resizings_are_what_their_names_say",
    ),
    Fault(
        "taps of the folded convolution mirrored",
        "model/folding.py",
        "rows[d : d + length]",
        "rows[2 - d : 2 - d + length]",
        "model/test_folding.py -k enlarged",
    ),
    Fault(
        "shift of a folded batch norm lost",
        "model/folding.py",
        "(scale * (start - mean) + bias)",
        "(scale * (start - mean))",
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
        "schedule off by one",
        "util/train/optimizers.py",
        "(1 - (iteration + 1) / total)",
        "(1 - iteration / total)",
        RATES,
    ),
    Fault(
        "rate of D not set",
        "util/train/adversarial.py",
        "set_lr(self.optimizer_d, rate)",
        "pass",
        RATES,
    ),
    Fault(
        "weight decay of G lost",
        "util/train/optimizers.py",
        'AdamW(settings("G"), betas=(0.9, 0.999), weight_decay=decay',
        'AdamW(settings("G"), betas=(0.9, 0.999), weight_decay=0.0',
        GROUPS,
    ),
    Fault(
        "bias of D's norms at the transformers' rate",
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
        "losses given out with their graph",
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
        "diversity of D's parts not weighed",
        "util/train/adversarial.py",
        'self.cfg.diversity_weight * terms["diversity"]',
        'terms["diversity"]',
        SUM,
    ),
    Fault(
        "gradient of the last part of a batch alone",
        "util/train/adversarial.py",
        "[a + b for a, b in zip(gradients, new, strict=True)]",
        "[b for a, b in zip(gradients, new, strict=True)]",
        f"{PARTS}[G]",
    ),
    Fault(
        "a part weighs as much as the whole batch",
        "util/train/adversarial.py",
        "return len(part) / len(batch)",
        "return 1.0",
        f"{PARTS}[D]",
    ),
    Fault(
        "ignored pixels counted in the mean",
        "util/train/adversarial.py",
        "(mask != IGNORE).sum()",
        "(mask >= 0).sum()",
        "train/test_adversarial.py::test_segmentation_losses_are_means_over_the_labelled_pixels",
    ),
    Fault(
        "sum of the levels in place of their mean",
        "util/train/adversarial.py",
        "torch.stack(levels).mean()",
        "torch.stack(levels).sum()",
        "train/test_adversarial.py::test_segmentation_losses_are_means_over_the_labelled_pixels",
    ),
    Fault(
        "a step although the loss is not finite",
        "util/train/adversarial.py",
        "if not distributed.all_reduce_sum((~good).float()):",
        "if True:",
        "train/test_adversarial.py::test_nonfinite_loss_leaves_every_parameter_unchanged",
    ),
    Fault(
        "a step although a gradient is not finite",
        "util/train/adversarial.py",
        "torch.nn.utils.get_total_norm(gradients).isfinite()",
        "torch.isfinite(loss)",
        "train/test_adversarial.py::test_nonfinite_gradient_leaves_every_parameter_unchanged",
    ),
    Fault(
        "ignore label counted in the IoU",
        "util/evaluate/metrics.py",
        "2 * target.int() + prediction.int()",
        "2 * target.int().clamp(max=1) + prediction.int()",
        "system/test_properties.py::test_binary_totals_are_those_of_a_confusion_matrix_and_add_up",
    ),
    Fault(
        "ignore label counted by the base learner's IoU",
        "util/evaluate/metrics.py",
        "target.int() * rows + prediction.int()",
        "target.int().clamp(max=rows - 1) * rows + prediction.int()",
        "system/test_properties.py::test_base_totals_are_those_of_a_confusion_matrix_and_add_up",
    ),
    Fault(
        "background among the base classes",
        "util/evaluate/metrics.py",
        "iou[seen].mean().item() if seen.any()",
        "ratio(*self.totals.T)[self.totals[:, 1] > 0].mean().item() if seen.any()",
        "system/test_properties.py::test_base_totals_are_those_of_a_confusion_matrix_and_add_up",
    ),
    Fault(
        "intersection twice in the union",
        "util/evaluate/metrics.py",
        "counts.sum(0) + counts.sum(1) - hits",
        "counts.sum(0) + counts.sum(1)",
        "system/test_properties.py::test_base_totals_are_those_of_a_confusion_matrix_and_add_up",
    ),
    Fault(
        "object above the threshold only",
        "util/evaluate/metrics.py",
        "self.totals.flip(-1).cumsum(-1).flip(-1)",
        "(self.totals.flip(-1).cumsum(-1).flip(-1) - self.totals)",
        "evaluate/test_metrics.py::test_the_best_threshold_is_the_best_of_all_tried_out",
    ),
    Fault(
        "totals of the other ranks forgotten",
        "util/evaluate/metrics.py",
        "    for each in totals:\n        distributed.all_reduce_sum(each.totals)",
        "    pass",
        "evaluate/test_metrics.py::test_totals_are_summed_over_the_ranks",
    ),
]  # fmt: skip
