"""The picture of a study: a lane per method, a ring for what is published, a dot with its interval for what was
measured."""

from service.study_views import StudyRow, StudyView
from service.web.dots import DotPlot, Lane, Mark, Reference, dot_plot


def picture(study: StudyView) -> DotPlot | None:
    """Robust accuracies where published and measured ones are of the same data; else what methods are ahead of the
    reference method. None where nothing was measured."""
    if not any(row.robust_accuracy is not None for row in study.rows):
        return None
    if study.dataset == study.published_dataset:
        return _accuracies(study)
    reference = next(row for row in study.rows if row.method == study.reference)
    return _accuracies(study) if reference.robust_accuracy is None else _leads(study)


def _accuracies(study: StudyView) -> DotPlot | None:
    same_data = study.dataset == study.published_dataset
    lanes = [
        Lane(row.method, [*(_printed(row) if same_data else []), *_here(row)], stands_out=_ours(row))
        for row in study.rows
    ]
    return dot_plot(f"{study.title}: robust accuracy", lanes, x_label="robust accuracy", unit="%")


def _leads(study: StudyView) -> DotPlot | None:
    lanes = [
        Lane(
            row.method,
            [
                *(
                    []
                    if row.published_lead is None
                    else [Mark(100 * row.published_lead, "published", hollow=True)]
                ),
                *_ahead(row),
            ],
            stands_out=_ours(row),
        )
        for row in study.rows
    ]
    return dot_plot(
        f"{study.title}: ahead of {study.reference}",
        lanes,
        x_label=f"robust accuracy less that of {study.reference}",
        unit="points",
        references=[Reference(0.0, study.reference)],
    )


def _printed(row: StudyRow) -> list[Mark]:
    return [] if row.published is None else [Mark(100 * row.published.robust_accuracy, "published", hollow=True)]


def _here(row: StudyRow) -> list[Mark]:
    return [] if row.robust_accuracy is None else [_measured(row, row.robust_accuracy, row.robust_interval)]


def _ahead(row: StudyRow) -> list[Mark]:
    return [] if row.measured_lead is None else [_measured(row, row.measured_lead, row.measured_lead_interval)]


def _measured(row: StudyRow, value: float, interval: tuple[float, float] | None) -> Mark:
    percent = interval and (100 * interval[0], 100 * interval[1])
    return Mark(100 * value, f"measured on {row.images} images", interval=percent)


def _ours(row: StudyRow) -> bool:
    """Whether it is of the papers that this project is about."""
    return row.recipe.startswith(("ikl-at", "gkl-at"))
