"""The names of AMFormer's weights in published checkpoints (AMNet)."""

from model.naming import BASE_LEARNER, ENSEMBLE, Naming

_MIX = "transformer.mix_transformer."
PUBLISHED = Naming(
    starts=[
        *BASE_LEARNER,
        *ENSEMBLE,
        (r"clue\.supp_merge$", r"supp_merge.0.weight"),
        (r"clue\.", r""),
        (r"object_mining\.pyramid\.(\d)\.embed\.", _MIX + r"down_sample_layers.\1.0."),
        (r"object_mining\.pyramid\.(\d)\.layers\.0\.", _MIX + r"down_sample_layers.\1.1."),
        (r"object_mining\.pyramid\.(\d)\.layers\.1\.", _MIX + r"down_sample_layers.\1.2."),
        (r"object_mining\.pyramid\.(\d)\.norm\.", _MIX + r"down_sample_layers.\1.3."),
        (r"object_mining\.mining\.(\d)\.layer\.", _MIX + r"match_layers1.\1.0."),
        (r"object_mining\.mining\.(\d)\.fuse\.", _MIX + r"match_layers1.\1.1."),
        (r"object_mining\.refine_mining\.0\.layer\.", _MIX + r"match_layers_r1.0.0."),
        (r"object_mining\.refine_mining\.0\.fuse\.", _MIX + r"match_layers_r1.0.1."),
        (r"object_mining\.refine_mining\.1\.layer\.", _MIX + r"match_layers_r2.0.0."),
        (r"object_mining\.refine_mining\.1\.fuse\.", _MIX + r"match_layers_r2.0.1."),
        (r"object_mining\.parse\.", _MIX + r"parse_layers."),
        (r"object_mining\.refine_parse\.0\.", _MIX + r"parse_layer_r1."),
        (r"object_mining\.refine_parse\.1\.", _MIX + r"parse_layer_r2."),
        (r"object_mining\.heads\.0\.", _MIX + r"cls."),
        (r"object_mining\.heads\.(\d)\.", _MIX + r"cls_r\1."),
        (r"detail_mining\.attention\.(\d)\.", r"part.\1."),
        (r"detail_mining\.discriminators\.(\d)\.", r"binary_cls.\1.conv."),
    ],
    # Inside an encoder layer and a part attention.
    inside={
        _MIX: [
            (r"\.attention\.reduce\.", ".attn.sr."),
            (r"\.attention\.norm\.", ".attn.norm."),
            (r"\.attention\.([qkvo])\.", r".attn.attn.linear_\1."),
            (r"\.ffn\.expand\.", ".ffn.layers.0."),
            (r"\.ffn\.depthwise\.", ".ffn.layers.1."),
            (r"\.ffn\.project\.", ".ffn.layers.4."),
        ],
        "part.": [
            (r"\.([qkv])\.", r".\1_fc."),
            (r"\.norm\.", ".layer_norms."),
            (r"\.expand\.", ".ffn.layers.0.0."),
            (r"\.contract\.", ".ffn.layers.1."),
        ],
    },
)
