"""Settings of the smallest network of each kind, as `create_model` takes them."""

VIT = {"image_size": 16, "patch_size": 4, "embed_dim": 12, "depth": 2, "num_heads": 3}
LEVIT = {
    "image_size": 48,
    "embed_dim": (16, 24),
    "key_dim": 4,
    "num_heads": (2, 3),
    "depth": (3, 2),
}
REGNET = {"stem_width": 8, "widths": (8, 16), "depth": (1, 2), "group_width": 4}
LVVIT = {"image_size": 32, "embed_dim": 12, "depth": 2, "num_heads": 3}
PVT = {
    "image_size": 32,
    "embed_dim": (8, 12),
    "depth": (1, 2),
    "num_heads": (1, 2),
    "sr_ratios": (2, 1),
    "mlp_ratios": (2, 2),
}
PIT = {
    "image_size": 16,
    "patch_size": 4,
    "stride": 2,
    "embed_dim": (8, 16),
    "depth": (1, 2),
    "num_heads": (1, 2),
}
CVT = {
    "image_size": 16,
    "patch_size": (7, 3),
    "patch_stride": (4, 2),
    "patch_padding": (2, 1),
    "embed_dim": (8, 12),
    "depth": (1, 2),
    "num_heads": (1, 2),
    "class_token": (False, True),
}
CONVNEXT = {
    "image_size": 20,
    "patch_size": 2,
    "embed_dim": (6, 8),
    "depth": (1, 4),
    "kernel_size": 3,
}
SWIN = {
    "image_size": 32,
    "embed_dim": (8, 16),
    "depth": (2, 1),
    "num_heads": (1, 2),
    "window_size": 3,
}
CONVIT = {**VIT, "local_up_to_layer": 1}
CROSSVIT = {
    "image_size": 48,
    "image_scale": (1.0, 2 / 3),
    "embed_dim": (12, 16),
    "num_heads": (2, 2),
    "depth": ((1, 2, 0), (1, 1, 2)),
}
LOOKUP = {
    **VIT,
    "compressed_grid": 2,
    "head_dim": 4,
    "cross_num_heads": 2,
    "cross_head_dim": 3,
    "patch_kernel_size": 3,
}
VOLO = {
    "image_size": 32,
    "layers": (1, 2, 1),
    "embed_dims": (8, 12, 12),
    "num_heads": (2, 3, 3),
    "stem_hidden_dim": 4,
}
