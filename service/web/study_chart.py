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
    return _accuracies(study) if reference.robust_accuracy is None else _leads(study, reference.robust_accuracy)


def _accuracies(study: StudyView) -> DotPlot | None:
    same_data = study.dataset == study.published_dataset
    lanes = [
        Lane(row.method, [*(_printed(row) if same_data else []), *_here(row, 0.0)], stands_out=_ours(row))
        for row in study.rows
    ]
    return dot_plot(f"{study.title}: robust accuracy", lanes, x_label="robust accuracy", unit="%")


def _leads(study: StudyView, of_reference: float) -> DotPlot | None:
    lanes = [
        Lane(
            row.method,
            [
                *(
                    []
                    if row.published_lead is None
                    else [Mark(100 * row.published_lead, "published", hollow=True)]
                ),
                *_here(row, of_reference),
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


def _here(row: StudyRow, less: float) -> list[Mark]:
    if row.robust_accuracy is None or row.robust_interval is None:
        return []
    low, high = row.robust_interval
    return [
        Mark(
            100 * (row.robust_accuracy - less),
            f"measured on {row.images} images",
            interval=(100 * (low - less), 100 * (high - less)),
        )
    ]


def _ours(row: StudyRow) -> bool:
    """Whether it is of the papers that this project is about."""
    return row.recipe.startswith(("ikl-at", "gkl-at"))
