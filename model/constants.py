"""Numbers that the networks, the data and the tests share. Importing this needs no torch."""

IGNORE = 255  # the label of pixels that count for nothing
TEMPERATURE = 0.1  # divides the cosines of the initial mask, the mining and the part attention
# Statistics of ImageNet's channels R, G, B, for images in 0..1.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
