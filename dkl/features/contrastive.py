"""CRD, contrastive representation distillation: the student's embedding of an image against the teacher's of many.

Shapes: B batch, D embedding, N images of the data set, Q candidates: the image itself first, then the negatives.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

_TINY = 1e-7


class Contrast(nn.Module):
    """Embeddings of both networks, which are learnt, and a memory of every training image's, which follows."""

    memory_student_ND: Tensor
    memory_teacher_ND: Tensor
    partition_2: Tensor

    def __init__(
        self,
        student_width: int,
        teacher_width: int,
        images: int,
        *,
        width: int = 128,
        temperature: float = 0.07,
        momentum: float = 0.5,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.embed_student = nn.Linear(student_width, width)
        self.embed_teacher = nn.Linear(teacher_width, width)
        self.temperature, self.momentum = temperature, momentum
        bound = (width / 3) ** -0.5
        for name in ("memory_student_ND", "memory_teacher_ND"):
            memory = torch.rand(images, width, generator=generator) * 2 * bound - bound
            self.register_buffer(name, memory)
        # The constants that turn scores into probabilities; unknown until the first batch.
        self.register_buffer("partition_2", torch.zeros(2, dtype=torch.float64))

    def forward(self, student_BW: Tensor, teacher_BW: Tensor, index_B: Tensor, candidates_BQ: Tensor) -> Tensor:
        """The loss of a batch, >= 0 up to a constant; then its embeddings go into the memory.

        `student` and `teacher` are pooled features; `index` are the images' places in the data set, `candidates`
        those of each image and its negatives, the image first.
        """
        s_BD = normalize(self.embed_student(student_BW))
        t_BD = normalize(self.embed_teacher(teacher_BW.detach()))
        return self.compare(s_BD, t_BD, index_B, candidates_BQ)

    def compare(self, s_BD: Tensor, t_BD: Tensor, index_B: Tensor, candidates_BQ: Tensor) -> Tensor:
        """`forward` from embeddings of length 1 on."""
        scores = [
            self._scores(self.memory_teacher_ND[candidates_BQ], s_BD),
            self._scores(self.memory_student_ND[candidates_BQ], t_BD),
        ]
        images = len(self.memory_student_ND)
        if not self.partition_2.any():
            self.partition_2.copy_(torch.stack([score.detach().mean() for score in scores]) * images)
        self._remember(self.memory_student_ND, index_B, s_BD)
        self._remember(self.memory_teacher_ND, index_B, t_BD)
        return sum(
            (
                contrast(score / z, images)
                for score, z in zip(scores, self.partition_2.to(s_BD.dtype), strict=True)
            ),
            start=s_BD.new_zeros(()),
        )

    def _scores(self, others_BQD: Tensor, own_BD: Tensor) -> Tensor:
        return (torch.einsum("bqd,bd->bq", others_BQD, own_BD) / self.temperature).exp()

    @torch.no_grad()
    def _remember(self, memory_ND: Tensor, index_B: Tensor, fresh_BD: Tensor) -> None:
        mixed_BD = self.momentum * memory_ND[index_B] + (1 - self.momentum) * fresh_BD.to(memory_ND.dtype)
        memory_ND[index_B] = normalize(mixed_BD)


def contrast(scores_BQ: Tensor, images: int) -> Tensor:
    """Noise-contrastive estimation: the first score of each row is the image's own, the others are noise.

        -(1 / B) * sum_b [log(x_0 / (x_0 + c)) + sum_k log(c / (x_k + c))],      c = negatives / images

    Source: Tian et al., arXiv:1910.10699, Eq. 17 to 19, with the authors' 1e-7 in the denominators.
    """
    noise = (scores_BQ.shape[1] - 1) / images
    own_B, others_BQ = scores_BQ[:, 0], scores_BQ[:, 1:]
    found = (own_B / (own_B + noise + _TINY)).log().sum()
    refused = (noise / (others_BQ + noise + _TINY)).log().sum()
    return -(found + refused) / len(scores_BQ)
