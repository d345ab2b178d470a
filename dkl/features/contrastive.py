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
        # The constants that turn scores into probabilities, of the first images that pass; 0 until then.
        self.register_buffer("partition_2", torch.zeros(2, dtype=torch.float64))

    def embed(self, student_BW: Tensor, teacher_BW: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings of length 1, (B, D), of pooled features."""
        return normalize(self.embed_student(student_BW)), normalize(self.embed_teacher(teacher_BW.detach()))

    def compare(self, s_BD: Tensor, t_BD: Tensor, candidates_BQ: Tensor) -> Tensor:
        """The loss of embeddings, >= 0 up to a constant; `candidates` are the places in the data set of each image
        and of its negatives, the image first."""
        scores = [
            self._scores(self.memory_teacher_ND, s_BD, candidates_BQ),
            self._scores(self.memory_student_ND, t_BD, candidates_BQ),
        ]
        images = len(self.memory_student_ND)
        fresh_2 = torch.stack([score.detach().mean().double() for score in scores]) * images
        self.partition_2.copy_(torch.where(self.partition_2 > 0, self.partition_2, fresh_2))
        return sum(
            (
                contrast(score / z, images)
                for score, z in zip(scores, self.partition_2.to(s_BD.dtype), strict=True)
            ),
            start=s_BD.new_zeros(()),
        )

    def _scores(self, memory_ND: Tensor, own_BD: Tensor, candidates_BQ: Tensor) -> Tensor:
        # With all N images: D times smaller than a copy of the memory's rows for each of B * Q candidates.
        similarity_BN = own_BD @ memory_ND.T
        return (similarity_BN.gather(1, candidates_BQ) / self.temperature).exp()

    @torch.no_grad()
    def remember(self, s_BD: Tensor, t_BD: Tensor, index_B: Tensor) -> None:
        """Mix embeddings into the memory, at the images' places in the data set: once `compare` has been
        differentiated."""
        self._mix(self.memory_student_ND, index_B, s_BD)
        self._mix(self.memory_teacher_ND, index_B, t_BD)

    def _mix(self, memory_ND: Tensor, index_B: Tensor, fresh_BD: Tensor) -> None:
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


class Negatives:
    """Draws images of other classes than an image's own, all of them equally often, with replacement."""

    def __init__(self, labels_N: Tensor) -> None:
        """ValueError where all images are of one class."""
        self._counts_K = labels_N.bincount()
        if int(self._counts_K.max()) == len(labels_N):
            raise ValueError(
                f"all {len(labels_N)} training images are of one class, and the objective 'crd' contrasts images "
                "of different ones; train on more images"
            )
        # Sorted by class, the others are what lies before an image's class and what lies behind.
        self._by_class_N = labels_N.argsort(stable=True)
        self._starts_K = self._counts_K.cumsum(0) - self._counts_K

    def draw(self, y_B: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """Places in the data set, (B, count)."""
        own_B1, starts_B1 = self._counts_K[y_B, None], self._starts_K[y_B, None]
        others_B1 = len(self._by_class_N) - own_B1
        shape = (len(y_B), count)
        uniform_BQ = torch.rand(shape, generator=generator, device=y_B.device, dtype=torch.float64)
        place_BQ = torch.minimum((uniform_BQ * others_B1).long(), others_B1 - 1)  # a product may be rounded up
        return self._by_class_N[place_BQ + own_B1 * (place_BQ >= starts_B1)]
