"""The plain formulation of the same model: the reference of the cheap one, in numbers and cost.

It runs on the parameters of an `AMFormer` and states method 1 to 4 literally: dense attention of
hw x hw, convolutions and batch norms one after the other, the prior over all support positions,
pooled maps enlarged before they are convolved, every episode's images encoded anew.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model import AMFormer, Prediction
from model.amformer.attention import EncoderLayer, ReducedAttention, to_map, to_tokens
from model.amformer.object_mining import MiningStep, ObjectMining, PyramidStage
from model.base_learner import Features
from model.ensemble import base_probability
from model.folding import LinearChain
from model.resize import bilinear, bilinear_ac, nearest


@torch.no_grad()
def features(model: AMFormer, image: Tensor, mask: Tensor | None = None) -> Features:
    """Encoder: image [N,3,S,S] (, mask [N,S,S]) -> the four maps."""
    base = model.encoder.base
    f2, f3, f4 = base.backbone(image if mask is None else image * (mask == 1)[:, None])
    grid = f3.shape[-2:]
    f2, f4 = (f if f.shape[-2:] == grid else bilinear_ac(f, grid) for f in (f2, f4))
    pooled = [bilinear_ac(cells, grid) for cells in base.ppm(f4)]
    return Features(f2, f3, f4, base.fuse(torch.cat((f4, *pooled), dim=1)))


def predict(
    model: AMFormer,
    query: Tensor,
    support: Tensor,
    support_mask: Tensor,
    *,
    class_index: Tensor | None = None,
) -> Prediction:
    """As `AMFormer.forward`."""
    seen = features(model, support.flatten(0, 1), support_mask.flatten(0, 1))
    return match(model, features(model, query), seen, support_mask, class_index=class_index)


def match(
    model: AMFormer,
    query: Features,
    support: Features,
    support_mask: Tensor,
    *,
    class_index: Tensor | None = None,
) -> Prediction:
    """As `AMFormer.match`, on the full maps of B queries and B*K supports."""
    batch, shot = support_mask.shape[:2]
    clue, grid = model.clue, query.f3.shape[-2:]
    inside = (support_mask == 1).flatten(0, 1)[:, None].to(query.f3.dtype)
    q = clue.down_query(torch.cat((query.f3, query.f2), dim=1))
    s = clue.down_supp(torch.cat((support.f3, support.f2), dim=1))
    soft = bilinear_ac(inside, grid)
    prototype = (s * soft).sum((2, 3)) / (soft.sum((2, 3)) + 0.0005)
    prototype = prototype.view(batch, shot, -1).mean(1)[..., None, None]
    with torch.no_grad():
        prior = _prior(query, support, nearest(inside, grid), shot)
        theirs = _gram(support.f2).unflatten(0, (batch, shot))
        difference = _gram(query.f2)[:, None] - theirs
        distances = difference.flatten(2).norm(dim=2) / query.f2.shape[1]
    cosine = F.cosine_similarity(q, prototype, dim=1)[:, None] / 0.1
    initial = torch.where(cosine < clue.threshold, 0, cosine)
    tokens = clue.query_merge(torch.cat((q, prototype.expand_as(q), prior * 10), dim=1))

    base_logits = model.encoder.base_logits(query)
    base = base_probability(base_logits, class_index)
    psi = model.ensemble.psi(distances)
    scales = _pyramid(model.object_mining, tokens)
    mined = _mine(model, scales, initial, prior, base, psi)
    final, foreground = model.ensemble(mined["logits"][-1], base, psi)
    return Prediction(
        size=tuple(support_mask.shape[-2:]),
        prior=prior,
        psi=psi,
        initial_mask=initial,
        query_scales=scales,
        base_logits=base_logits,
        final=final,
        foreground=foreground,
        **mined,
    )


def _prior(query: Features, support: Features, inside: Tensor, shot: int) -> Tensor:
    maps = []
    for q, s in ((query.f5, support.f5), (query.f4, support.f4)):
        q = to_tokens(q).repeat_interleave(shot, 0)  # [BK,hw,C]
        s = (s * inside).flatten(2)  # [BK,C,hw]
        norms = q.norm(dim=2)[:, :, None] * s.norm(dim=1)[:, None]
        best = ((q @ s) / (norms + 1e-7)).amax(2)
        maps.append(best.unflatten(0, (-1, shot)).mean(1).unflatten(1, inside.shape[-2:]))
    return torch.stack(maps, dim=1)


def _gram(f2: Tensor) -> Tensor:
    f = f2.flatten(2)
    norm = f.norm(dim=2)
    return (f @ f.transpose(1, 2)) / (norm[:, :, None] * norm[:, None] + 1e-7)


def _pyramid(g: ObjectMining, x: Tensor) -> list[Tensor]:
    scales = []
    for stage in g.pyramid:
        x = _stage(stage, x)
        scales.insert(0, x)
    return scales


def _stage(stage: PyramidStage, x: Tensor) -> Tensor:
    tokens, grid = stage.embed(x)
    for layer in stage.layers:
        attended = _reduced_attention(layer.attention, layer.norm1(tokens), grid)
        tokens = _rest_of(layer, tokens, attended, grid)
    return to_map(stage.norm(tokens), grid)


def _reduced_attention(layer: ReducedAttention, x: Tensor, grid: tuple[int, int]) -> Tensor:
    source = x
    if layer.reduction > 1:
        source = layer.norm(to_tokens(layer.reduce(to_map(x, grid))))
    q, k, v = layer.split(layer.q(x)), layer.split(layer.k(source)), layer.split(layer.v(source))
    attention = torch.softmax(q @ k.transpose(-2, -1) / (q.shape[-1] ** 0.5 + 1e-9), dim=-1)
    return layer.o((attention @ v).transpose(1, 2).flatten(2))


def _rest_of(
    layer: EncoderLayer, tokens: Tensor, attended: Tensor, grid: tuple[int, int]
) -> Tensor:
    tokens = tokens + layer.dropout(attended)
    return tokens + layer.ffn(layer.norm2(tokens), grid)


def _mining_step(step: MiningStep, x: Tensor, mask: Tensor, prior: Tensor) -> tuple[Tensor, Tensor]:
    layer, grid = step.layer, x.shape[-2:]
    mask, prior = bilinear_ac(mask, grid), bilinear_ac(prior, grid)
    tokens, m = to_tokens(x), mask.flatten(2)[:, None]  # m: [B,1,1,N keys]
    normed, attention = layer.norm1(tokens), layer.attention
    q, k = (F.normalize(attention.split(p(normed)), dim=-1) for p in (attention.q, attention.k))
    scores = q @ k.transpose(-2, -1) / 0.1  # [B,heads,N queries,N keys]
    if attention.softmax == "query":
        weights = torch.softmax(scores, dim=-2) * (m != 0)
    else:
        weights = torch.softmax(scores.masked_fill(m == 0, -torch.inf), dim=-1).nan_to_num(0)
    out = weights @ attention.split(attention.v(normed))
    correlation = (scores * m / (m.sum(-1, keepdim=True) + 1e-9)).sum(-1).mean(1)
    attended = attention.o(out.transpose(1, 2).flatten(2))
    mined = to_map(_rest_of(layer, tokens, attended, grid), grid)
    return step.fuse(torch.cat((mined, prior), dim=1)), correlation.unflatten(1, grid)


def _chain(chain: LinearChain, x: Tensor) -> Tensor:
    return nn.Sequential.forward(chain, x)


def _mine(
    model: AMFormer, scales: list[Tensor], initial: Tensor, prior: Tensor, base: Tensor, psi: Tensor
) -> dict[str, list[Tensor]]:
    g, correlations, out = model.object_mining, [], None
    for scale, step, parse in zip(scales, g.mining, g.parse, strict=True):
        x, correlation = _mining_step(step, scale, initial, prior)
        correlations.append(correlation)
        up = None if out is None else bilinear(out, scale.shape[-2:])
        if up is None:
            out = torch.relu(_chain(parse, x))
        else:
            out = up + torch.relu(_chain(parse, x + up))
    maps, logits, masks = [out], [_chain(g.heads[0], out)], []
    for step, parse, head in zip(g.refine_mining, g.refine_parse, g.heads[1:], strict=True):
        masks.append(model.ensemble.hard_mask(logits[-1], base, psi))
        x, _ = _mining_step(step, maps[-1], masks[-1], prior)
        maps.append(torch.relu(_chain(parse, x)))
        logits.append(_chain(head, maps[-1]))
    return {"correlations": correlations, "features": maps, "logits": logits, "masks": masks}
