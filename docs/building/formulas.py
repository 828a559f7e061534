"""Formulas as MathML, which browsers draw by themselves: no script, no font, no network."""

import re

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.writers.html5 import HTML5Translator

NEAR = 'stretchy="false" lspace="0" rspace="0"'


def mathml(node: nodes.Element, as_block: bool = False) -> str:
    """The formula; bars and brackets are as large as a letter, and bars keep no distance."""
    text = tex2mathml(node.astext(), as_block=as_block)
    text = re.sub("<mo>([‖⟨⟩])</mo>", r'<mo stretchy="false">\1</mo>', text)
    return text.replace('<mo stretchy="false">|</mo>', f"<mo {NEAR}>|</mo>")


def inline(page: HTML5Translator, node: nodes.math) -> None:
    page.body.append(mathml(node))
    raise nodes.SkipNode


def block(page: HTML5Translator, node: nodes.math_block) -> None:
    page.body.append(f'<div class="math">{mathml(node, as_block=True)}</div>')
    raise nodes.SkipNode
