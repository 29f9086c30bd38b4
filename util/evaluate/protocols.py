"""Which evaluation a config asks for: `Eval.protocol` and `Eval.way`."""

from model import System
from util.config import Config
from util.data import EpisodeDataset
from util.data.tables import load_table
from util.evaluate.evaluator import Evaluator
from util.evaluate.generalized import GeneralizedBam, GeneralizedDiam
from util.evaluate.label_maps import MapEvaluator
from util.evaluate.nway import NWay
from util.folds import fold_of
from util.runtime import Ranks, UserError


def open_evaluator(
    model: System, episodes: EpisodeDataset, cfg: Config, ranks: Ranks
) -> Evaluator | MapEvaluator:
    """Return the evaluator of a test.

    Raises `UserError` if the data has too few classes or images for the protocol, or the system has
    no base learner and the protocol needs one.
    """
    evaluator, options = Evaluator(model, episodes, cfg, ranks), cfg.Eval
    if options.protocol == "fss":
        if options.way == 1:
            return evaluator
        return MapEvaluator(evaluator, NWay(episodes.sampler, options.way))
    if not model.has_base_learner:
        what = f"needs a base learner, which {cfg.Method.name} does not have"
        raise UserError(f"Eval.protocol {options.protocol} {what}; use fss")
    kind = GeneralizedBam if options.protocol == "gfss_bam" else GeneralizedDiam
    table = load_table(episodes.source, cfg.Data.list_dir)
    images, _ = episodes.source.find_images(list(table), cfg.Data.missing)
    protocol = kind(episodes.sampler, fold_of(cfg.Data), table, images, options.merge_tau)
    return MapEvaluator(evaluator, protocol)
