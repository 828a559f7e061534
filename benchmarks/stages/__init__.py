"""The stages of `accelerator.py`, in the order of their worth.

Each has `run(clock, folder)`, a generator: it yields its report so far, as Markdown, after each
part of its work, and ends by itself when its clock is out.
"""
