"""The page `report.html` of an exported model, which needs no other file."""

import base64
import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from kdrop.training.arguments import in_words, option, with_options
from kdrop.training.experiment import Experiment
from kdrop.training.fields import by_group
from kdrop.training.report import Results

# Of each picture that `export` draws, in the order of the page.
CAPTIONS = {
    "regions": "Decision regions of each network, and points of the test set.",
    "uncertainty": "How unsure the network is over the plane: with weight scaling, and "
    "by the vote of samples.",
    "predictions": "The first test images with their predictions.",
    "certainty": "The test images with the most and the least certain votes.",
    "confusion": "How often each true class is predicted as which.",
    "reliability": "Reliability diagram: accuracy and number of test examples for each "
    "bin of confidence. A calibrated network lies on the diagonal.",
    "passes": "Error and likelihood of the vote, the mean of so many random "
    "sub-networks, and of weight scaling, one forward pass without dropout.",
    "curves": "Loss and accuracy against the epoch. In training, dropout is on.",
}
STYLE = """
:root { color-scheme: light dark }
body { font: 1rem/1.5 system-ui, sans-serif; max-width: 66rem; margin: auto }
body { padding: 1rem; overflow-wrap: anywhere }
h1, h2, h3 { line-height: 1.2; margin: 2rem 0 .5rem }
h1 { margin-top: 0 }
div, pre { overflow-x: auto; overflow-wrap: normal; margin: 1rem 0 }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .25rem 1rem .25rem 0; text-align: left; vertical-align: top }
th, td { border-bottom: 1px solid #8885 }
thead th { vertical-align: bottom }
.numbers :is(th, td) { white-space: pre }
.number { text-align: right }
td code { white-space: nowrap }
pre { background: #8882; padding: .75rem; border-radius: .25rem }
figure { margin: 1.5rem 0 }
img { max-width: 100%; max-height: 32rem; background: #fff; border-radius: .25rem }
"""


def report_page(
    folder: Path,
    record: Mapping[str, Any],
    labels: Sequence[str],
    tables: Iterable[Results],
    sentences: Iterable[str],
    pictures: Mapping[str, bytes],
    request: str,
) -> str:
    """The page as HTML.

    Args:
        folder: The folder of the model.
        record: The content of `experiment.json`.
        pictures: The PNG files by their names in `CAPTIONS`.
        request: The command that asks the server, as from `request_to`.
    """
    settings = record["settings"]
    figures = "".join(
        f'<figure><img alt="{name}" src="data:image/png;base64,'
        f'{base64.b64encode(pictures[name]).decode()}">'
        f"<figcaption>{caption}</figcaption></figure>\n"
        for name, caption in CAPTIONS.items()
        if name in pictures
    )
    chosen = ""
    for heading, fields in by_group(Experiment).items():
        values = (in_words(each, settings[each.name]) for each in fields)
        texts = (with_options(each.metadata["help"]) for each in fields)
        names = (option(each.name) for each in fields)
        rows = zip(names, values, texts, strict=True)
        chosen += f"<h3>{heading.capitalize()}</h3>{_table(rows)}"
    run = {"classes": ", ".join(labels)}
    run |= {f"rate of {name}": rate for name, rate in record["rates"].items()}
    run |= {"Monte Carlo samples": record["passes"], "they vote on": record["voted_on"]}
    run |= {name.replace("_", " "): x for name, x in record["metrics"].items()}
    serve = f"python -m kdrop.serving {shlex.quote(str(folder.parent))}"
    name, data = escape(folder.name), escape(settings["data"])
    return f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{name}</title>
<style>{STYLE}</style>
<h1>{name}</h1>
<p>A network that <code>train.py</code> trained on {data}
with dropout: {escape(settings["dropout"])}.</p>
<h2>What was seen</h2>
{"".join(f"<p>{escape(sentence)}</p>" for sentence in sentences)}
{"".join(_results(table) for table in tables)}
<h2>Pictures</h2>
{figures}
<h2>Serve it</h2>
<pre>pip install '.[serve]'
{escape(serve)}</pre>
<p>Then open <a href="http://127.0.0.1:8501">http://127.0.0.1:8501</a>, or ask it in a
terminal:</p>
<pre>{escape(request)}</pre>
<p>In Python, after <code>import kdrop</code>,
<code>keras.models.load_model("model.keras")</code> loads the file beside this page.</p>
<h2>This run</h2>
{_table([key, _number(value)] for key, value in run.items())}
<h2>Settings</h2>
{chosen}
<h2>Made with</h2>
{_table([key, str(value)] for key, value in record["made_with"].items())}
</html>
"""


def request_to(name: str, shape: Sequence[int], signature: str) -> str:
    """A command that asks the server about zeros of the shape of one input."""
    url = f"127.0.0.1:8501/v1/models/{name}:predict"
    if len(shape) > 1:  # the zeros would be too long to read
        zeros = "0"
        for size in reversed(shape):
            zeros = f"[{zeros}] * {size}"
        body = f"{{'signature_name': '{signature}', 'instances': [{zeros}]}}"
        program = f"import json; print(json.dumps({body}))"
        return f'python -c "{program}" \\\n    | curl {url} -d @-'
    body = {"signature_name": signature, "instances": [[0.0] * shape[0]]}
    return f"curl {url} \\\n    -d '{json.dumps(body)}'"


def _results(table: Results) -> str:
    """A table of results as HTML; its columns of numbers have headings of two lines."""
    kinds = ["number" if "\n" in x else "" for x in table.headings]

    def row(cells, tag):
        pairs = zip(cells, kinds, strict=True)
        return "".join(f'<{tag} class="{k}">{escape(x)}</{tag}>' for x, k in pairs)

    body = "".join(f"<tr>{row(cells, 'td')}</tr>\n" for cells in table.rows)
    return (
        f'<h3>{escape(table.title)}</h3>\n<div><table class="numbers">'
        f"<thead><tr>{row(table.headings, 'th')}</tr></thead>\n{body}</table></div>\n"
    )


def _table(rows: Iterable[Sequence[str]]) -> str:
    """A table without headings, whose first column holds names."""
    lines = []
    for name, *cells in rows:
        name = f"<code>{escape(name)}</code>" if name[0] == "-" else escape(name)
        others = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        lines.append(f"<tr><td>{name}</td>{others}</tr>\n")
    return f"<div><table>{''.join(lines)}</table></div>\n"


def _number(value: object) -> str:
    """A value of the record, where NaN is `None`: a run that diverged has it."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return "not a number" if value is None else str(value)
