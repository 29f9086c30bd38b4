"""AMFormer as equations, literally: read this first.

"Focus on Query: Adversarial Mining Transformer for Few-Shot Segmentation", NeurIPS 2023,
arXiv:2311.17626. This file states what the published code computes, on the parameters of an
`AMFormer`. The other files compute the same numbers with far fewer operations. Where they do, the
docstring names the function here that it equals. tests/model/test_plain.py compares the numbers,
`python -m util.bench --plain` the cost.

"Method N" in a comment anywhere means section N of docs/method.md, and here:

    1  frozen encoder and base learner       context, features
    2  support clue                          reduce_channels ... generator_input
    3  G, the object-mining transformer      pyramid ... chain
    4  ensemble of G with the base learner   base_probability ... hard_mask
    5  D, the detail-mining transformer      part_attention, discriminate
    6  losses; how G and D take turns        model/amformer/losses.py, util/train/adversarial.py
    7  data, protocol and scores             util/data, util/evaluate, docs/protocol.md

Shapes:

    B     queries in a batch             K    supports ("shots") per query
    S     side of an image, pixels       h,w  feature grid; (S - 1) / 8 + 1 cells a side, VGG half
    N     h * w positions ("tokens")     C    channels

    map [B,C,h,w]   tokens [B,N,C]   support map [B*K,C,h,w]: the K shots of a query in a row

`bilinear_ac` resizes with aligned corners, `bilinear` without. Masks are 1 on the object, 255 on
pixels to ignore, 0 elsewhere; only 1 counts as object.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.amformer.clue import ClueExtractor
from model.amformer.detail_mining import HEADS, DetailMining, DiscriminatorOutputs, PartAttention
from model.amformer.object_mining import ObjectMining
from model.amformer.system import AMFormer, MiningPrediction
from model.attention import MaskedMiningAttention, MixFFN, ReducedAttention
from model.base_learner import BaseLearner, Features
from model.constants import TEMPERATURE
from model.ensemble import Ensemble
from model.mining import MiningStep, PyramidStage
from model.resize import bilinear, bilinear_ac, grid_size, nearest, to_map, to_tokens


def predict(
    model: AMFormer, query: Tensor, support: Tensor, support_mask: Tensor,
    *, class_index: Tensor | None = None,
) -> MiningPrediction:  # fmt: skip
    """Segment each query [B,3,S,S] by its K supports [B,K,3,S,S]: `AMFormer.forward`, literally.

    Images are normalized, support masks [B,K,S,S] in {0,1,255}. In training only, `class_index` [B]
    is the episode's class among the base classes, from 0.
    """
    base = model.encoder.base_learner
    seen = features(base, support.flatten(0, 1), support_mask.flatten(0, 1))
    return match(model, features(base, query), seen, support_mask, class_index=class_index)


def match(
    model: AMFormer, query: Features, support: Features, support_mask: Tensor,
    *, class_index: Tensor | None = None,
) -> MiningPrediction:  # fmt: skip
    """Segment queries, given the encoder's maps: [B,C,h,w] of queries, [B*K,C,h,w] of supports."""
    clue, g, ensemble = model.clue, model.object_mining, model.ensemble

    # Method 2: what the supports say about the query.
    q = reduce_channels(clue.down_query, query)  # [B,256,h,w]
    s = reduce_channels(clue.down_supp, support)  # [B*K,256,h,w]
    p = prototype(s, support_mask)  # [B,256,1,1]
    m0 = initial_mask(q, p, clue.threshold)  # [B,1,h,w]
    similarity = prior(query, support, support_mask)  # [B,2,h,w]
    low = model.encoder.low_fea  # f2, unless Method.low_fea says otherwise
    distances = gram_distances(query.of_layer(low), support.of_layer(low), support_mask)  # [B,K]
    x = generator_input(clue, q, p, similarity)  # [B,64,h,w]

    # Method 4, which the refinements of G need: psi and the base learner's opinion.
    psi = weigh_shots(ensemble, distances)  # [B]
    base_logits = classify(model.encoder.base_learner, query)  # [B,classes+1,h,w]
    base = base_probability(base_logits, class_index)  # [B,1,h,w]
    if model.base_map == "unshown":  # not as published
        shown = shown_classes(model.encoder.base_learner, support, support_mask)  # [B,classes]
        base = base_probability(base_logits, class_index, shown)
    elif model.base_map == "none":
        base = torch.zeros_like(base)

    # Method 3: G mines the object, coarse to fine, then refines it twice at the full grid.
    scales = pyramid(g, x)
    f, correlations = mine_coarse_to_fine(g, scales, m0, similarity)  # F_0 [B,64,h,w]
    maps, logits, masks = [f], [chain(g.heads[0], f)], []
    for step, parse, head in zip(g.refine_mining, g.refine_parse, g.heads[1:], strict=True):
        masks.append(hard_mask(ensemble, logits[-1], base, psi))  # [B,1,h,w] of 0 and 1
        mined, _ = mining_step(step, maps[-1], masks[-1], similarity)
        maps.append(torch.relu(chain(parse, mined)))  # F_1, F_2
        logits.append(chain(head, maps[-1]))  # [B,2,h,w]

    final, foreground = merge(ensemble, logits[-1], base, psi)
    return MiningPrediction(
        size=grid_size(support_mask), prior=similarity, psi=psi, initial_mask=m0,
        query_scales=scales, correlations=correlations, features=maps, logits=logits, masks=masks,
        base_logits=base_logits, final=final, foreground=foreground,
    )  # fmt: skip


# --- 1. Frozen encoder and base learner ----------------------------------------------------------


@torch.no_grad()
def features(base: BaseLearner, image: Tensor, mask: Tensor | None = None) -> Features:
    """Return f2, f3, f4 (stages 2 to 4 of the backbone) and f5 of the base learner, on f3's grid.

    A support image [B*K,3,S,S] is multiplied by its mask [B*K,S,S] before it enters the backbone.
    """
    if mask is not None:
        image = image * (mask == 1)[:, None]
    f2, f3, f4 = base.backbone(image)
    grid = grid_size(f3)
    f2, f4 = (f if grid_size(f) == grid else bilinear_ac(f, grid) for f in (f2, f4))
    return Features(f2, f3, f4, context(base, f4))


def context(base: BaseLearner, f4: Tensor) -> Tensor:
    """Return f5 = BN(conv3x3([f4, f4 pooled to 1, 2, 3, 6 cells a side and enlarged again])).

    f5 [B,512,h,w] has no ReLU yet, so it can be negative.
    """
    pooled = [bilinear_ac(cells, grid_size(f4)) for cells in base.ppm(f4)]
    return base.fuse(torch.cat((f4, *pooled), dim=1))


def classify(base: BaseLearner, query: Features) -> Tensor:
    """Return the base learner's logits [B,classes+1,h,w], channel 0 the background."""
    return base.classifier(base.dropout(torch.relu(query.f5)))


# --- 2. Support clue, prior, initial mask --------------------------------------------------------


def is_object(mask: Tensor, like: Tensor) -> Tensor:
    """Return a mask [B,S,S] in {0,1,255} as 0 and 1 [B,1,S,S], in the type of `like`."""
    return (mask == 1)[:, None].to(like.dtype)


def reduce_channels(down: nn.Sequential, maps: Features) -> Tensor:
    """Return Dropout2d(ReLU(W [f3, f2])): 256 channels."""
    return down(torch.cat((maps.f3, maps.f2), dim=1))


def prototype(s: Tensor, support_mask: Tensor) -> Tensor:
    """Masked average pooling: p = mean over shots of sum(s m) / (sum(m) + 0.0005), [B,256,1,1]."""
    m = bilinear_ac(is_object(support_mask.flatten(0, 1), s), grid_size(s))  # [B*K,1,h,w]
    means = (s * m).sum((2, 3)) / (m.sum((2, 3)) + 0.0005)  # [B*K,256]
    return means.unflatten(0, support_mask.shape[:2]).mean(1)[..., None, None]


def initial_mask(q: Tensor, p: Tensor, threshold: float) -> Tensor:
    """M_0 = cos(p, q) / 0.1, values below the threshold set to 0: [B,1,h,w].

    As published the threshold is 0.7. It acts on cos / 0.1, so it keeps cosines from 0.07.
    """
    m0 = F.cosine_similarity(q, p, dim=1)[:, None] / TEMPERATURE
    return torch.where(m0 < threshold, 0, m0)


def prior(query: Features, support: Features, support_mask: Tensor) -> Tensor:
    """Training-free prior: max over j of <s_j m_j, q_i> / (|s_j m_j| |q_i| + 1e-7), [B,2,h,w].

    From f5, then from f4; each is the mean over the shots. Support positions j outside the mask
    count as similarity 0. They matter: f5 can make all others negative.
    """
    shot, grid = support_mask.shape[1], grid_size(query.f3)
    m = nearest(is_object(support_mask.flatten(0, 1), query.f3), grid)  # [B*K,1,h,w], 0 and 1
    maps = []
    for f_query, f_support in ((query.f5, support.f5), (query.f4, support.f4)):
        q = to_tokens(f_query).repeat_interleave(shot, 0)  # [B*K,N,C]
        s = (f_support * m).flatten(2)  # [B*K,C,N]
        norms = q.norm(dim=2)[:, :, None] * s.norm(dim=1)[:, None]  # [B*K,N,N]
        best = ((q @ s) / (norms + 1e-7)).amax(2)  # [B*K,N]
        maps.append(best.unflatten(0, (-1, shot)).mean(1).unflatten(1, grid))
    return torch.stack(maps, dim=1)


def gram_matrix(f2: Tensor) -> Tensor:
    """Return the cosines between the channels of f2 [B,C,h,w]: f f^T / (|f_i| |f_j| + 1e-7)."""
    f = f2.flatten(2)  # [B,C,N]
    norm = f.norm(dim=2)
    return (f @ f.transpose(1, 2)) / (norm[:, :, None] * norm[:, None] + 1e-7)  # [B,C,C]


def gram_distances(query: Tensor, support: Tensor, support_mask: Tensor) -> Tensor:
    """Return d_k = ||Gram(query) - Gram(support k)||_F / C of each shot, from f2 of both: [B,K]."""
    shots = gram_matrix(support).unflatten(0, support_mask.shape[:2])  # [B,K,C,C]
    difference = gram_matrix(query)[:, None] - shots
    return difference.flatten(2).norm(dim=2) / query.shape[1]


def generator_input(clue: ClueExtractor, q: Tensor, p: Tensor, prior: Tensor) -> Tensor:
    """Return ReLU(conv1x1([q, p at every position, 10 * prior])): [B,64,h,w]."""
    return clue.query_merge(torch.cat((q, p.expand_as(q), prior * 10), dim=1))


# --- 3. G, the object-mining transformer ---------------------------------------------------------


def pyramid(g: ObjectMining, x: Tensor) -> list[Tensor]:
    """Encode x [B,64,h,w] fine to coarse; return the three scales [B,64,h_i,w_i], coarse first."""
    scales: list[Tensor] = []
    for stage in g.pyramid:
        assert isinstance(stage, PyramidStage)
        x = pyramid_stage(stage, x)
        scales.insert(0, x)
    return scales


def pyramid_stage(stage: PyramidStage, x: Tensor) -> Tensor:
    """Patch embedding (convolution of stride 1 or 2, LayerNorm), two encoder layers, LayerNorm."""
    tokens, grid = stage.embed(x)
    for layer in stage.layers:
        attended = reduced_attention(layer.attention, layer.norm1(tokens), grid)
        tokens = tokens + layer.dropout(attended)
        tokens = tokens + mix_ffn(layer.ffn, layer.norm2(tokens), grid)
    return to_map(stage.norm(tokens), grid)


def reduced_attention(layer: ReducedAttention, x: Tensor, grid: tuple[int, int]) -> Tensor:
    """softmax(q k^T / (sqrt(d) + 1e-9)) v; k and v come from a map r times coarser, r = 4, 2, 1."""
    source = x
    if layer.reduction > 1:
        source = layer.norm(to_tokens(layer.reduce(to_map(x, grid))))
    q, k, v = (heads(y, layer.heads) for y in (layer.q(x), layer.k(source), layer.v(source)))
    scores = q @ k.transpose(-2, -1) / (q.shape[-1] ** 0.5 + 1e-9)  # [B,heads,N,N/r^2]
    out = torch.softmax(scores, dim=-1) @ v  # [B,heads,N,d]
    return layer.o(out.transpose(1, 2).flatten(2))


def heads(x: Tensor, count: int) -> Tensor:
    """Split the channels of tokens into heads: [...,N,C] -> [...,heads,N,d], C = heads * d."""
    return x.unflatten(-1, (count, -1)).transpose(-3, -2)


def mix_ffn(ffn: MixFFN, x: Tensor, grid: tuple[int, int]) -> Tensor:
    """conv1x1 64->256, depthwise conv3x3, GELU, dropout, conv1x1 256->64, dropout, on tokens."""
    hidden = ffn.dropout(F.gelu(ffn.depthwise(ffn.expand(to_map(x, grid)))))
    return to_tokens(ffn.dropout(ffn.project(hidden)))


def mine_coarse_to_fine(
    g: ObjectMining, scales: list[Tensor], m0: Tensor, prior: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """o_0 = parse_0(x_0), o_i = up(o_{i-1}) + parse_i(x_i + up(o_{i-1})), x_i = mined scale i.

    Returns F_0 = o_2 [B,64,h,w], and the correlation [B,h_i,w_i] of each scale.
    """
    steps = zip(g.mining, scales, strict=True)
    mined, correlations = zip(*(mining_step(m, x, m0, prior) for m, x in steps), strict=True)
    o = torch.relu(chain(g.parse[0], mined[0]))
    for x, parse in zip(mined[1:], g.parse[1:], strict=True):
        up = bilinear(o, grid_size(x))
        o = up + torch.relu(chain(parse, x + up))
    return o, list(correlations)


def mining_step(step: MiningStep, x: Tensor, mask: Tensor, prior: Tensor) -> tuple[Tensor, Tensor]:
    """Masked mining layer on x, then ReLU(BN(conv3x3([its output, prior]))).

    x is [B,64,h_i,w_i], mask [B,1,h,w]. Returns [B,64,h_i,w_i] and the correlation [B,h_i,w_i].
    """
    layer, grid = step.layer, grid_size(x)
    m = bilinear_ac(mask, grid).flatten(1)  # [B,N]
    tokens = to_tokens(x)
    mined, correlation = mining_attention(layer.attention, layer.norm1(tokens), m)
    tokens = tokens + layer.dropout(mined)
    tokens = tokens + mix_ffn(layer.ffn, layer.norm2(tokens), grid)
    fused = step.fuse(torch.cat((to_map(tokens, grid), bilinear_ac(prior, grid)), dim=1))
    return fused, correlation.unflatten(1, grid)


def mining_attention(layer: MaskedMiningAttention, x: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
    """Attend to the masked positions, on scores c = cos(q, k) / 0.1.

    attention = softmax of c over the QUERIES, as published, then 0 in the columns of keys with
    m = 0. With `Method.mining_softmax: key` it is the usual softmax, over the keys with m != 0.
    correlation_i = sum_j c_ij m_j / (sum_j m_j + 1e-9), mean over the heads.
    x is [B,N,64], m [B,N]. Returns tokens [B,N,64] and the correlation [B,N].
    """
    q = F.normalize(heads(layer.q(x), layer.heads), dim=-1)  # [B,heads,N,d]
    k = F.normalize(heads(layer.k(x), layer.heads), dim=-1)
    c = q @ k.transpose(-2, -1) / TEMPERATURE  # [B,heads,N queries,N keys]
    m = m[:, None, None]  # [B,1,1,N keys]
    if layer.softmax == "query":
        attention = torch.softmax(c, dim=-2) * (m != 0)
    else:  # a row without any key is 0 / 0: it gathers nothing
        attention = torch.softmax(c.masked_fill(m == 0, -torch.inf), dim=-1).nan_to_num(0)
    out = attention @ heads(layer.v(x), layer.heads)  # [B,heads,N,d]
    correlation = ((c * m) / (m.sum(-1, keepdim=True) + 1e-9)).sum(-1).mean(1)
    return layer.o(out.transpose(1, 2).flatten(2)), correlation


def chain(layers: nn.Sequential, x: Tensor) -> Tensor:
    """conv1x1, BN, conv3x3, BN, conv1x1 [, BN], 256 channels inside; parse gives 64, a head 2."""
    for layer in layers:
        x = layer(x)
    return x


# --- 4. Ensemble with the base learner -----------------------------------------------------------


def base_probability(
    base_logits: Tensor, class_index: Tensor | None, shown: Tensor | None = None
) -> Tensor:
    """Return the probability of being any base class, the episode's own left out: [B,1,h,w].

    The classes `shown` [B,classes] are left out, too.
    """
    probability = torch.softmax(base_logits, dim=1)[:, 1:]  # [B,classes,h,w], no background
    if class_index is not None:  # in training; not renormalized
        own = F.one_hot(class_index, probability.shape[1])[..., None, None]
        probability = probability * (1 - own)
    if shown is not None:
        probability = probability * ~shown[..., None, None]
    return probability.sum(1, keepdim=True)


def shown_classes(base: BaseLearner, support: Features, support_mask: Tensor) -> Tensor:
    """Return which base classes the objects of each query's supports show: bool [B,classes].

    Of the mean probabilities over all positions of the K objects, the highest of a base class, and
    each that is not below that of the background.
    """
    probability = torch.softmax(base.classifier(torch.relu(support.f5)), dim=1)
    inside = (support_mask.flatten(0, 1) == 1)[:, None].to(probability.dtype)
    inside = nearest(inside, grid_size(support.f5))  # [B*K,1,h,w]
    count = len(support_mask)
    mass = (probability * inside).sum((2, 3)).unflatten(0, (count, -1)).sum(1)  # [B,classes+1]
    background, classes = mass[:, :1], mass[:, 1:]
    highest = classes.amax(1, keepdim=True)
    return (mass.sum(1, keepdim=True) > 0) & (classes >= torch.minimum(background, highest))


def weigh_shots(ensemble: Ensemble, distances: Tensor) -> Tensor:
    """Return psi = sum_k w_k d_k: [B]; w = softmax(conv(ReLU(conv(d sorted)))). K = 1: psi = d.

    As published, w is computed from the sorted distances and applied in shot order.
    """
    if ensemble.kshot is None:
        return distances.mean(1)
    ordered = distances.sort(dim=1).values[..., None, None]  # [B,K,1,1]
    w = torch.softmax(ensemble.kshot(ordered).flatten(1), dim=1)
    return (w * distances).sum(1)


def merge(ensemble: Ensemble, logits: Tensor, base: Tensor, psi: Tensor) -> tuple[Tensor, Tensor]:
    """(bg', fg') = a1 softmax(z) + a2 psi; bg'' = b1 bg' + b2 base; final = [bg'', fg'].

    final [B,2,h,w] is used as scores in argmax and cross entropy. Returns it and fg' [B,1,h,w].
    """
    a1, a2 = ensemble.gram_merge.weight.flatten()  # initially 1, 0
    b1, b2 = ensemble.cls_merge.weight.flatten()  # initially 1, 0
    merged = a1 * torch.softmax(logits, dim=1) + a2 * psi[:, None, None, None]
    background, foreground = merged.split(1, dim=1)
    return torch.cat((b1 * background + b2 * base, foreground), dim=1), foreground


@torch.no_grad()
def hard_mask(ensemble: Ensemble, logits: Tensor, base: Tensor, psi: Tensor) -> Tensor:
    """Mask of the next refinement: fg' > 0.5 and not (bg'' > fg'), as 0 and 1 [B,1,h,w]."""
    final, foreground = merge(ensemble, logits, base, psi)
    return ((foreground > 0.5) & ~(final[:, :1] > foreground)).to(logits.dtype)


# --- 5. D, the detail-mining transformer ---------------------------------------------------------


def discriminate(
    d: DetailMining, maps: list[Tensor], fake_mask: Tensor, query_mask: Tensor
) -> list[DiscriminatorOutputs]:
    """Judge, on each of F_0, F_1, F_2, the part whose fake and real forms are least alike.

    The fake mask is fg' of the last logits [B,1,h,w], one for all levels; the real one comes from
    the ground truth `query_mask` [B,S,S].
    """
    real_mask = bilinear_ac(is_object(query_mask, fake_mask), grid_size(fake_mask))  # [B,1,h,w]
    outputs = []
    for f, attend, judge in zip(maps, d.attention, d.discriminators, strict=True):
        fake, fake_maps = part_attention(attend, f, fake_mask)
        real, real_maps = part_attention(attend, f, real_mask)
        least_alike = F.cosine_similarity(fake, real, dim=2, eps=1e-6).argmin(1)  # [B]
        chosen = least_alike[:, None, None].expand(-1, 1, fake.shape[2])  # [B,1,64]
        fake_score, real_score = (judge(x.gather(1, chosen)[:, 0]) for x in (fake, real))
        outputs.append(DiscriminatorOutputs(fake_maps, real_maps, fake_score, real_score))
    return outputs


def part_attention(layer: PartAttention, f: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Let 14 learned part queries P attend to the tokens of a masked map, with 4 heads.

    c = cos(q, k) / 0.1, part maps = sigmoid(mean of c over the heads) * mask,
    x = P + proj(softmax(c) v), parts = LN(x + W2 ReLU(W1 x)). As published, the softmax runs over
    ALL tokens: masked ones are zero vectors and stay in it.
    f is [B,64,h,w], mask [B,1,h,w] in [0,1]. Returns parts [B,14,64] and part maps [B,14,N].
    """
    tokens, drop = to_tokens(f * mask), layer.dropout
    q = F.normalize(heads(layer.q(layer.parts), HEADS), dim=-1)  # [4,14,16]
    k = F.normalize(heads(layer.k(tokens), HEADS), dim=-1)  # [B,4,N,16]
    c = q @ k.transpose(-2, -1) / TEMPERATURE  # [B,4,14,N]
    part_maps = torch.sigmoid(c.mean(1)) * mask.flatten(2)
    gathered = drop(torch.softmax(c, dim=-1)) @ heads(layer.v(tokens), HEADS)  # [B,4,14,16]
    x = layer.parts + drop(layer.proj(gathered.transpose(1, 2).flatten(2)))
    hidden = drop(torch.relu(layer.expand(x)))
    return layer.norm(x + drop(layer.contract(hidden))), part_maps
