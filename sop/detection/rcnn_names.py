"""What the parameters of Faster and Mask R-CNN are called in PyTorch."""

from sop.models.backbone import TorchNames

# torchvision's names; then those of its first release and of old mmdetection.
TORCH_NAMES = TorchNames(
    prefix="backbone.body.",
    names=(
        (r"^fpn/lateral(\d)", r"backbone.fpn.inner_blocks.\1.0"),
        (r"^fpn/output(\d)", r"backbone.fpn.layer_blocks.\1.0"),
        (r"^rpn/conv\b", "rpn.head.conv.0.0"),
        (r"^rpn/objects\b", "rpn.head.cls_logits"),
        (r"^rpn/boxes\b", "rpn.head.bbox_pred"),
        (r"^box_head/hidden1\b", "roi_heads.box_head.fc6"),
        (r"^box_head/hidden2\b", "roi_heads.box_head.fc7"),
        (r"^box_head/classes\b", "roi_heads.box_predictor.cls_score"),
        (r"^box_head/boxes\b", "roi_heads.box_predictor.bbox_pred"),
        (r"^mask_head/conv(\d)", r"roi_heads.mask_head.\1.0"),
        (r"^mask_head/double\b", "roi_heads.mask_predictor.conv5_mask"),
        (r"^mask_head/masks\b", "roi_heads.mask_predictor.mask_fcn_logits"),
    ),
    aliases=(
        (r"^backbone\.fpn\.(inner|layer)_blocks\.(\d)\.(?!0\.)", r"backbone.fpn.\1_blocks.\2.0."),
        (r"^rpn\.head\.conv\.(?!0\.)", "rpn.head.conv.0.0."),
        (r"^backbone\.(?!body\.|fpn\.)", "backbone.body."),
        (r"^neck\.lateral_convs\.(\d)\.conv\.", r"backbone.fpn.inner_blocks.\1.0."),
        (r"^neck\.fpn_convs\.(\d)\.conv\.", r"backbone.fpn.layer_blocks.\1.0."),
        (r"^rpn_head\.rpn_conv\.", "rpn.head.conv.0.0."),
        (r"^rpn_head\.rpn_cls\.", "rpn.head.cls_logits."),
        (r"^rpn_head\.rpn_reg\.", "rpn.head.bbox_pred."),
        (r"^bbox_head\.shared_fcs\.0\.", "roi_heads.box_head.fc6."),
        (r"^bbox_head\.shared_fcs\.1\.", "roi_heads.box_head.fc7."),
        (r"^bbox_head\.fc_cls\.", "roi_heads.box_predictor.cls_score."),
        (r"^bbox_head\.fc_reg\.", "roi_heads.box_predictor.bbox_pred."),
        (r"^mask_head\.convs\.(\d)\.conv\.", r"roi_heads.mask_head.\1.0."),
        (r"^mask_head\.upsample\.", "roi_heads.mask_predictor.conv5_mask."),
        (r"^mask_head\.conv_logits\.", "roi_heads.mask_predictor.mask_fcn_logits."),
        *(
            (rf"^roi_heads\.mask_head\.mask_fcn{place + 1}\.", f"roi_heads.mask_head.{place}.0.")
            for place in range(4)
        ),
    ),
)
