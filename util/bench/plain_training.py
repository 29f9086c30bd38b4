"""Adversarial training on the plain formulation (model/amformer/plain.py), for tests and bench.

`encode` and `PlainAdversarialTrainer` stand in for `util.features.encode` and `AdversarialTrainer`.
As in the published code, a step of D also builds G's graph and computes all losses.
"""

from dataclasses import dataclass, replace

from torch import Tensor

from model import AMFormer
from model.amformer import MiningPrediction, losses, plain
from model.amformer.detail_mining import DiscriminatorOutputs
from model.base_learner import Features
from model.query_support import QueryFeatures
from model.resize import grid_size
from util.data.dataset import EpisodeBatch
from util.features import EncodedBatch
from util.train.adversarial import AdversarialTrainer
from util.train.trainer import final_areas


@dataclass(kw_only=True)
class PlainBatch(EncodedBatch):
    """`EncodedBatch` with the full maps of the supports, and without anything that saves work.

    Attributes:
        support: maps [B*K,C,h,w]; `supports` is empty and `query.gram` too.
        support_mask: [B,K,S,S] in {0,1,255}.
    """

    support: Features
    support_mask: Tensor

    def split(self, parts: int) -> list[EncodedBatch]:
        """Return the whole batch: the published code has no smaller parts."""
        return [self]


def encode(model: AMFormer, batch: EpisodeBatch) -> PlainBatch:
    """Encode B queries and B*K supports with `plain.features`."""
    base, mask = model.encoder.base_learner, batch.support_mask
    query = plain.features(base, batch.query)
    return PlainBatch(
        query=QueryFeatures(query, query.f2.new_empty(len(mask), 0, 0), grid_size(batch.query)),
        supports=[[] for _ in mask],
        support=plain.features(base, batch.support.flatten(0, 1), mask.flatten(0, 1)),
        support_mask=mask,
        query_mask=batch.query_mask,
        query_base_mask=batch.query_base_mask,
        class_index=batch.class_index,
        plans=batch.plans,
    )


class PlainAdversarialTrainer(AdversarialTrainer):
    """`AdversarialTrainer` on batches of `encode`."""

    def predict(self, batch: EncodedBatch) -> MiningPrediction:
        """Predict with `plain.match`."""
        assert isinstance(batch, PlainBatch)
        return plain.match(
            self.model, batch.query.features, batch.support, batch.support_mask,
            class_index=batch.class_index,
        )  # fmt: skip

    def discriminator_outputs(
        self, prediction: MiningPrediction, batch: EncodedBatch
    ) -> list[DiscriminatorOutputs]:
        """Compare the predicted and the true masks with `plain.discriminate`."""
        return plain.discriminate(
            self.model.detail_mining, prediction.features, prediction.foreground, batch.query_mask
        )

    def discriminator_step(
        self, batch: EncodedBatch, chosen: Tensor, *, iteration: int = 0
    ) -> dict[str, Tensor]:
        """Take a step of D; see `AdversarialTrainer.discriminator_step`."""

        def losses_of(part: EncodedBatch) -> dict[str, Tensor]:
            prediction = self.predict(part)
            terms = self.segmentation_losses(prediction, part, self.count_labeled_pixels(part))
            constant = replace(
                prediction,
                features=[feature.detach() for feature in prediction.features],
                foreground=prediction.foreground.detach(),
            )
            outputs = self.discriminator_outputs(constant, part)
            terms["adversarial_d"] = losses.discriminator(outputs)
            terms["diversity"] = losses.diversity(outputs, chosen)
            total = terms["adversarial_d"] + self.cfg.diversity_weight * terms["diversity"]
            return terms | {"loss_d": total, "areas": final_areas(prediction, part)}

        return self._step(self.optimizer_d, batch, "loss_d", losses_of, iteration)
