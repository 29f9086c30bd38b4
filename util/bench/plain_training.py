"""Training on the plain formulation."""

from dataclasses import dataclass

from torch import Tensor

from model import AMFormer, Prediction
from model.amformer import losses
from model.amformer.plain import features, match
from model.base_learner import Features
from model.resize import bilinear_ac
from util.data.dataset import EpisodeBatch
from util.train.adversarial import AdversarialTrainer


@dataclass
class PlainBatch:
    """As `util.features.EncodedBatch`, with full maps of queries and supports."""

    query: Features
    support: Features
    support_mask: Tensor
    query_mask: Tensor
    query_base_mask: Tensor
    class_index: Tensor
    plans: list

    def __len__(self) -> int:
        return len(self.class_index)

    def split(self, parts: int) -> list["PlainBatch"]:
        return [self]


def encode(model: AMFormer, batch: EpisodeBatch) -> PlainBatch:
    mask = batch.support_mask
    return PlainBatch(
        query=features(model, batch.query),
        support=features(model, batch.support.flatten(0, 1), mask.flatten(0, 1)),
        support_mask=mask,
        query_mask=batch.query_mask,
        query_base_mask=batch.query_base_mask,
        class_index=batch.class_index,
        plans=batch.plans,
    )


class PlainAdversarialTrainer(AdversarialTrainer):
    """The game on the plain formulation; a D step builds G's graph and all losses, as published."""

    def predict(self, batch: PlainBatch) -> Prediction:
        return match(
            self.model, batch.query, batch.support, batch.support_mask,
            class_index=batch.class_index,
        )  # fmt: skip

    def discriminator_step(
        self, batch: PlainBatch, chosen: Tensor, *, iteration: int = 0
    ) -> dict[str, Tensor]:
        def losses_of(part: PlainBatch) -> dict[str, Tensor]:
            prediction = self.predict(part)
            terms = self.segmentation_losses(prediction, part, self.pixels(part))
            constants = [feature.detach() for feature in prediction.features]
            fake = prediction.foreground.detach()
            truth = (part.query_mask == 1)[:, None].to(fake.dtype)
            real = bilinear_ac(truth, fake.shape[-2:])
            details = self.model.detail_mining(constants, fake, real)
            terms["adversarial_d"] = losses.discriminator(details)
            terms["diversity"] = losses.diversity(details, chosen)
            total = terms["adversarial_d"] + self.cfg.diversity_weight * terms["diversity"]
            return terms | {"loss_d": total}

        return self._step(self.optimizer_d, batch, "loss_d", losses_of, iteration)
