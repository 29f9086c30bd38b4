"""The names of AMFormer's weights in published checkpoints (AMNet)."""

from model.naming import BASE_LEARNER, ENSEMBLE, IN_ENCODER_LAYER, MIX, PYRAMID, Naming

PUBLISHED = Naming(
    marks=("object_mining.", MIX + "match_layers1."),
    starts=[
        *BASE_LEARNER,
        *ENSEMBLE,
        (r"clue\.supp_merge$", r"supp_merge.0.weight"),
        (r"clue\.", r""),
        *((r"object_mining\." + ours, theirs) for ours, theirs in PYRAMID),
        (r"object_mining\.mining\.(\d)\.layer\.", MIX + r"match_layers1.\1.0."),
        (r"object_mining\.mining\.(\d)\.fuse\.", MIX + r"match_layers1.\1.1."),
        (r"object_mining\.refine_mining\.0\.layer\.", MIX + r"match_layers_r1.0.0."),
        (r"object_mining\.refine_mining\.0\.fuse\.", MIX + r"match_layers_r1.0.1."),
        (r"object_mining\.refine_mining\.1\.layer\.", MIX + r"match_layers_r2.0.0."),
        (r"object_mining\.refine_mining\.1\.fuse\.", MIX + r"match_layers_r2.0.1."),
        (r"object_mining\.parse\.", MIX + r"parse_layers."),
        (r"object_mining\.refine_parse\.0\.", MIX + r"parse_layer_r1."),
        (r"object_mining\.refine_parse\.1\.", MIX + r"parse_layer_r2."),
        (r"object_mining\.heads\.0\.", MIX + r"cls."),
        (r"object_mining\.heads\.(\d)\.", MIX + r"cls_r\1."),
        (r"detail_mining\.attention\.(\d)\.", r"part.\1."),
        (r"detail_mining\.discriminators\.(\d)\.", r"binary_cls.\1.conv."),
    ],
    # Inside an encoder layer and a part attention.
    inside={
        MIX: IN_ENCODER_LAYER,
        "part.": [
            (r"\.([qkv])\.", r".\1_fc."),
            (r"\.norm\.", ".layer_norms."),
            (r"\.expand\.", ".ffn.layers.0.0."),
            (r"\.contract\.", ".ffn.layers.1."),
        ],
    },
)
