"""Faults in lists, order, labels and transforms of the data, and in the scores."""

from helpers.mutants.fault import Fault

PROTOCOL = [
    Fault(
        "base learner on the fold's list",
        "util/config/schema.py",
        '"all", "training images: all',
        '"fold", "training images: all',
        "data/test_protocol.py::"
        "test_base_learner_gets_every_image_with_novel_objects_as_background",
    ),
    Fault(
        "crop of the base learner never drawn again",
        "util/data/transform.py",
        "range(1 + self.REDRAWS)",
        "range(1)",
        "data/test_protocol.py::test_crop_is_drawn_again_until_it_holds_most_of_label_1",
    ),
    Fault(
        "queries of the test permuted",
        "util/data/episodes.py",
        'in_list = self.draw.order == "list"',
        "in_list = False",
        "data/test_protocol.py::test_queries_follow_the_list_whatever_the_seed",
    ),
    Fault(
        "published configs with permuted queries",
        "util/config/schema.py",
        '        "list",\n        "queries: the list\'s own order',
        '        "permuted",\n        "queries: the list\'s own order',
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
        'fold_of(data), data.novel_in_training == "drop"',
        'fold_of(data), data.novel_in_training == "x"',
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
