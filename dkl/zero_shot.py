"""Zero-shot teachers: a network for images and the names of the classes, compared by a model of both.

    logits_k = logit_scale * cos(image encoder(x), text_k)

    text_k = the normalised mean, over templates, of normalised text encoder("a photo of a NAME of class k.")

as CLIP classifies without having seen a label (Radford et al., arXiv:2103.00020, section 3.1). Such a teacher
gives logits like any other, so any student can be distilled from it with any objective on logits.

This is our reading of the abstract of arXiv:2503.08038, which claims results of distillation for CLIP models too.
Its authors publish no code, configuration or script for that, so there is no published recipe to follow here and
no number to compare with.

The text is encoded once; its encoder is not needed any more then. A model comes in through a function on one's own
machine, `teacher.function=teachers:clip` with a file teachers.py in the folder where the command runs, such as

    import open_clip
    from dkl.zero_shot import zero_shot

    def clip():
        model, _, _ = open_clip.create_model_and_transforms("ViT-B-16", pretrained="laion2b_s34b_b88k")
        words = open_clip.get_tokenizer("ViT-B-16")
        return zero_shot(model.visual, lambda texts: model.encode_text(words(texts)), NAMES, image_size=224)

The image encoder is an nn.Module that gives one vector per image: `visual` of open_clip, an image tower of timm
(create_model("vit_base_patch16_clip_224.openai", pretrained=True)), or, of transformers, a module of one's own
that returns CLIPVisionModelWithProjection's `.image_embeds`. A service runs no functions of its users.

Shapes: B batch, C channels, H, W pixels, K classes, D width of the embedding, T templates.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from dkl.preprocessing import Geometry, Preprocessed

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class ZeroShot(nn.Module):
    """x_BCHW in [0, 1] -> logits_BK: how much images resemble texts. Grey images are shown in all channels."""

    text_KD: Tensor
    logit_scale: Tensor

    def __init__(self, image: Preprocessed, text_KD: Tensor, *, logit_scale: float) -> None:
        """`image` gives embeddings (B, D); the rows of `text_KD` are normalised here."""
        super().__init__()
        self.image = image
        self.register_buffer("text_KD", normalize(text_KD.detach(), dim=1))
        self.register_buffer("logit_scale", torch.tensor(logit_scale, dtype=text_KD.dtype))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        image_BD = self.image(x_BCHW)
        width = self.text_KD.shape[1]
        if not isinstance(image_BD, Tensor) or image_BD.ndim != 2 or image_BD.shape[1] != width:
            found = tuple(image_BD.shape) if isinstance(image_BD, Tensor) else type(image_BD).__name__
            raise ValueError(
                f"the image encoder answers {len(x_BCHW)} images with {found}; expected a tensor "
                f"({len(x_BCHW)}, {width}), as wide as the embeddings of the texts"
            )
        finer = torch.promote_types(image_BD.dtype, self.text_KD.dtype)
        return self.logit_scale * normalize(image_BD.to(finer), dim=1) @ self.text_KD.to(finer).T


def zero_shot(
    image_encoder: nn.Module,
    encode_text: Callable[[list[str]], Tensor],
    class_names: Sequence[str],
    *,
    templates: Sequence[str] = ("a photo of a {}.",),
    logit_scale: float = 100.0,
    mean: tuple[float, ...] = CLIP_MEAN,
    std: tuple[float, ...] = CLIP_STD,
    image_size: int | None = None,
) -> ZeroShot:
    """A classifier of `class_names`, in the order of the data set's labels, in eval mode.

    `encode_text` gives one vector per text, (N, D), as wide as those of `image_encoder`. `logit_scale` is what the
    model was trained with (`model.logit_scale.exp()`; CLIP's is 100). Pixels in [0, 1] are scaled to `image_size`
    (bicubic, the middle is cut out; absent: left as they are), then normalised with `mean` and `std`, of which
    CLIP's are the defaults. ValueError where texts, templates or embeddings are not what they should be.
    """
    text_KD = class_embeddings(encode_text, class_names, templates)
    geometry = None if image_size is None else Geometry(image_size, image_size, "bicubic")
    image = Preprocessed(image_encoder, mean, std, geometry)
    return ZeroShot(image, text_KD, logit_scale=logit_scale).eval().requires_grad_(False)


@torch.no_grad()
def class_embeddings(
    encode_text: Callable[[list[str]], Tensor], class_names: Sequence[str], templates: Sequence[str]
) -> Tensor:
    """(K, D): of each class the normalised mean of its normalised texts, one for each template."""
    if wrong := [template for template in templates if template.count("{}") != 1]:
        raise ValueError(f"the template {wrong[0]!r} needs one {{}}, where the name of a class goes")
    if not templates or not class_names:
        raise ValueError("found no class names or no templates; give one of each at least")
    if twice := sorted({name for name in class_names if class_names.count(name) > 1}):
        raise ValueError(f"the class name {twice[0]!r} is there twice, and nothing tells such classes apart")
    rows = []
    for name in class_names:
        texts = [template.replace("{}", name) for template in templates]
        text_TD = encode_text(texts)
        if text_TD.ndim != 2 or len(text_TD) != len(texts):
            raise ValueError(
                f"encode_text answers {len(texts)} texts with {tuple(text_TD.shape)}; expected ({len(texts)}, D)"
            )
        rows.append(normalize(text_TD, dim=1).mean(0))
    return normalize(torch.stack(rows), dim=1)
