"""Stage ``study_table``: the coupling study's table, answers, report and pictures, from the cells that are there."""

import argparse

from pipeline.orchestration.stage import program, stage
from pipeline.reporting.study import answers, questions, read_cells, study_table
from pipeline.reporting.study_figures import difference_panels, score_panels
from pipeline.reporting.study_markdown import study_markdown
from pipeline.reporting.tables import write_table
from pipeline.reporting.titles import evaluation_titles
from pipeline.settings.inputs import read_inputs
from pipeline.settings.paths import ScaleReports
from pipeline.utils.atomic import write_text
from pipeline.utils.errors import UserError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", required=True)
    parser.add_argument("--task", required=True)
    arguments = parser.parse_args()
    inputs = read_inputs("study_table", arguments.scale, arguments.task)
    settings = inputs.settings.task(arguments.task)
    evaluation, study = settings.select.evaluation, settings.studied()
    reports = ScaleReports(arguments.scale)
    names = ["coupling_study.csv", "coupling_study_answers.csv", "coupling_study.md"]
    pictures = ["coupling_study.png", "coupling_study_differences.png"]
    table_path, answers_path, report_path = (reports.folder / name for name in names)
    figure_paths = [reports.folder / name for name in pictures]
    with stage(
        inputs,
        f"study_table-{arguments.scale}-{arguments.task}",
        deps=[reports.study],
        outs=[
            table_path,
            answers_path,
            report_path,
            *figure_paths,
            *(path.with_suffix(".svg") for path in figure_paths),
        ],
    ) as here:
        cells = read_cells(reports.study, evaluation, study.train_seeds)
        if not cells:
            raise UserError(f"{reports.study}: holds no cell; run `make study`")
        chosen = {int(key.removeprefix("nfe")): coupling for key, coupling in study.chosen.items()}
        title = evaluation_titles({arguments.task: settings})[evaluation]
        table = study_table(cells, arguments.scale, evaluation)
        answered = answers(cells, questions(chosen))
        write_table(table_path, table)
        write_table(answers_path, answered)
        score_panels(table, figure_paths[0])
        difference_panels(table, figure_paths[1])
        write_text(
            report_path,
            study_markdown(
                table, answered, train_seeds=study.train_seeds, chosen=chosen, pictures=pictures, title=title
            ),
        )
        here.run.table(table_path, "coupling_study")
        here.run.table(answers_path, "coupling_study_answers")
        for path in (report_path, *figure_paths):
            here.run.artifact(path)


if __name__ == "__main__":
    program(main)
