"""SqueezeNet 1.1 with CGD (He et al., arXiv 1907.09665)."""

from configs.recipes import imagenet


def get_config():
    config = imagenet.with_cgd(imagenet.cgd_mobilenet())
    config.model.backbone = "squeezenet1_1"
    return config
