"""Distillations in the ledger, on both databases: they wait for their teachers, and others wait for them."""

import pytest
from samples import DISTILLED, EPOCH, JUDGED, TRAIN, TRAINED
from samples import distillation as distill
from sqlalchemy import Engine, update

from dkl.catalog import resolve
from dkl.events import Finished
from dkl.protocols import Checkpoint
from dkl.recipes import Distill
from service import claims, distillation, distilled, files, jobs, waiting
from service.callers import COMMAND_LINE
from service.db import reading, writing
from service.jobs import Order
from service.measured import measured
from service.tables import ArtifactUse, Job
from service.waiting import Offer

CPU = Offer(queues=("gpu",), gpus=0, gpu_memory=0.0, processes=1)
THREAT = {"threat": {"norm": "Linf", "eps": 0.2}, "attack": {"loss": "kl"}}


def claim(db: Engine, job_id: str) -> claims.Claim:
    taken = claims.claim(db, job_id, worker="w", lease_seconds=60)
    assert taken is not None
    return taken


def run(db: Engine, job_id: str, finished: Finished) -> None:
    taken = claim(db, job_id)
    claims.append(db, taken, EPOCH)
    claims.finish(db, taken, finished)


def student_of(db: Engine, teacher: str, **changes: object) -> str:
    return jobs.create(db, distill(teacher, **changes), name="kd-digits").id


def test_a_student_waits_for_its_teacher_and_its_evaluation_for_the_student(db: Engine) -> None:
    teacher, student = jobs.new_id(), jobs.new_id()
    judging = resolve("autoattack-digits-linf", {"model.job": student})
    orders = [Order(TRAIN, id=teacher), Order(distill(teacher), id=student), Order(judging)]
    *_, evaluation = jobs.create_all(db, orders, caller=COMMAND_LINE, max_queued=None)
    assert waiting.next_ready(db, CPU) == teacher
    assert claims.claim(db, student, worker="w", lease_seconds=60) is None
    run(db, teacher, TRAINED)
    assert waiting.next_ready(db, CPU) == student
    taken = claim(db, student)
    assert taken.checkpoint == "a" * 64
    assert isinstance(taken.recipe, Distill)
    claims.finish(db, taken, DISTILLED)
    done = jobs.get(db, student)
    assert (done.status, done.clean_accuracy, done.processes, done.parent_id) == ("succeeded", 0.9, 1, teacher)
    assert claim(db, evaluation.id).checkpoint == "b" * 64


def test_a_student_teaches_the_next(db: Engine) -> None:
    teacher = jobs.create(db, TRAIN).id
    student = student_of(db, teacher)
    grandchild = student_of(db, student)
    run(db, teacher, TRAINED)
    run(db, student, DISTILLED)
    assert claim(db, grandchild).checkpoint == "b" * 64


def test_a_robust_student_is_on_the_board_of_its_threat(db: Engine) -> None:
    teacher = jobs.create(db, TRAIN).id
    student = student_of(db, teacher, **THREAT)
    assert (jobs.get(db, student).norm, jobs.get(db, student).eps) == ("Linf", 0.2)
    evaluation = jobs.create(db, resolve("autoattack-digits-linf", {"model.job": student})).id
    for job_id, finished in ((teacher, TRAINED), (student, DISTILLED), (evaluation, JUDGED)):
        run(db, job_id, finished)
    [[row]] = measured(db).values()
    assert (row.name, row.model_job_id, row.entry) == ("kd-digits", student, evaluation)


def test_a_student_is_on_the_board_of_its_data_set_and_a_robust_one_is_not(db: Engine) -> None:
    teacher = jobs.create(db, TRAIN).id
    student, robust = student_of(db, teacher), student_of(db, teacher, **THREAT)
    for job_id, finished in ((teacher, TRAINED), (student, DISTILLED), (robust, DISTILLED)):
        run(db, job_id, finished)
    found = distillation.find(db, distillation.Question(board="digits"))
    assert found.board.title == "Handwritten digits"
    (row,) = found.rows
    assert (row.job_id, row.method, row.accuracy, row.source) == (student, "KD", 0.9, "measured")


def test_a_student_stands_beside_the_published_ones_of_its_pair(db: Engine) -> None:
    """Papers write ResNet32x4 where our networks are called resnet32x4."""
    teacher = jobs.create(db, resolve("natural-cifar100-resnet32x4", {})).id
    recipe = resolve("ikl-kd-cifar100-resnet32x4-resnet8x4", {"teacher.job": teacher})
    student = jobs.create(db, recipe, name="ikl-kd-cifar100-resnet32x4-resnet8x4").id
    run(db, teacher, TRAINED)
    result = DISTILLED.result.model_copy(update={"teacher": "resnet32x4", "clean_accuracy": 0.9})
    run(db, student, Finished(result=result))
    asked = distillation.Question(board="cifar100-same", teacher="ResNet32x4", student="ResNet8x4")
    best, second, *_ = distillation.find(db, asked).rows
    assert (best.job_id, best.rank, best.student_accuracy) == (student, 1, 0.725)
    assert (second.source, second.method, second.rank) == ("published", "IKL-KD", 2)
    assert best.note == "published for the same recipe: 76.59 %"


@pytest.mark.parametrize("end", ["fail", "cancel"])
def test_without_a_teacher_student_and_evaluation_fail_with_the_reason(db: Engine, end: str) -> None:
    teacher = jobs.create(db, TRAIN).id
    student = student_of(db, teacher)
    evaluation = jobs.create(db, resolve("autoattack-digits-linf", {"model.job": student})).id
    if end == "fail":
        claims.fail(db, claim(db, teacher), "loss is nan")
    else:
        jobs.cancel(db, teacher)
    assert jobs.get(db, student).status == jobs.get(db, evaluation).status == "failed"
    assert f"it waited for job {teacher}" in str(jobs.get(db, student).reason)
    with pytest.raises(jobs.RefusedError, match=rf"teacher.job: job {teacher} was .* and has no model"):
        student_of(db, teacher)


def test_what_cannot_teach_is_refused(db: Engine) -> None:
    with pytest.raises(jobs.RefusedError, match=r"teacher.job: there is no job 000000000000"):
        student_of(db, "0" * 12)
    teacher = jobs.create(db, TRAIN).id
    evaluation = jobs.create(db, resolve("autoattack-digits-linf", {"model.job": teacher})).id
    with pytest.raises(jobs.RefusedError, match=r"teacher.job: .* is an evaluation and has no model"):
        student_of(db, evaluation)
    with pytest.raises(
        jobs.RefusedError, match=r"teacher.job: job \w+ was trained on .* 10 classes; CIFAR-100 has"
    ):
        student_of(db, teacher, dataset="cifar100")
    run(db, teacher, TRAINED)
    with writing(db) as session:
        files.release(session, teacher, "checkpoint")
    with pytest.raises(jobs.RefusedError, match=r"the files of job .* were given up"):
        student_of(db, teacher)


def test_a_stored_teacher_is_kept_for_its_student(db: Engine) -> None:
    student = jobs.create(db, distill(Checkpoint(checkpoint="a" * 64))).id
    assert claim(db, student).checkpoint == "a" * 64
    with reading(db) as session:
        assert session.get(ArtifactUse, ("a" * 64, student, "source")) is not None


def test_the_data_set_of_a_checkpoint_is_that_of_the_job_that_made_it(db: Engine) -> None:
    teacher = jobs.create(db, TRAIN).id
    assert files.data_set_of(db, "a" * 64) is None
    run(db, teacher, TRAINED)
    assert files.data_set_of(db, "a" * 64) == "digits"


# --- what was reached -------------------------------------------------------------------------------------


def test_every_student_that_succeeded_is_a_row(db: Engine) -> None:
    teacher = jobs.create(db, TRAIN).id
    first = student_of(db, teacher)
    second = student_of(db, teacher, objective={"kind": "gkl-kd"}, **THREAT)
    assert distilled.distilled(db) == []
    run(db, teacher, TRAINED)
    run(db, first, DISTILLED)
    [row] = distilled.distilled(db)
    assert (row.job_id, row.name, row.dataset, row.method) == (first, "kd-digits", "digits", "KD")
    assert (row.teacher, row.student, row.accuracy, row.teacher_accuracy) == ("CNN-32", "CNN-8", 0.9, 0.95)
    assert (row.seconds_per_iteration, row.extra_parameters, row.device) == (0.0125, 0, "cpu")
    long_tailed = DISTILLED.result.model_copy(update={"many_accuracy": 0.9, "few_accuracy": 0.5})
    run(db, second, Finished(result=long_tailed))
    assert [row.job_id for row in distilled.distilled(db)] == [first, second]
    other = distilled.distilled(db)[1]
    assert (other.method, other.norm, other.eps) == ("GKL-KD", "Linf", 0.2)
    assert (other.many, other.medium, other.few) == (0.9, None, 0.5)


@pytest.mark.parametrize(
    ("overrides", "published"), [({"seed": 3, "keep_teacher": True}, 0.7066), ({"epochs": 7}, None)]
)
def test_the_papers_number_stands_beside_a_student_that_was_distilled_as_published(
    db: Engine, overrides: dict[str, object], published: float | None
) -> None:
    teacher = jobs.create(db, resolve("natural-cifar100-resnet56", {})).id
    name = "kd-cifar100-resnet56-resnet20"
    student = jobs.create(db, resolve(name, {**overrides, "teacher.job": teacher}), name=name).id
    run(db, teacher, TRAINED)
    run(db, student, DISTILLED)
    [row] = distilled.distilled(db)
    assert (row.student, row.published_accuracy) == ("resnet20", published)


def test_a_student_of_networks_that_are_not_known_any_more_is_named_by_their_kind(db: Engine) -> None:
    teacher = jobs.create(db, TRAIN).id
    student = student_of(db, teacher)
    run(db, teacher, TRAINED)
    run(db, student, DISTILLED)
    with writing(db) as session:
        document = {**distill(teacher).model_dump(mode="json"), "model": {"kind": "old-net"}}
        session.execute(update(Job).where(Job.id == student).values(recipe=document))
    assert [row.student for row in distilled.distilled(db)] == ["old-net"]
