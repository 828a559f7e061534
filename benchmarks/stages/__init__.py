"""The stages of `accelerator.py`.

Each has `run(clock, folder)`, a generator that yields its report so far, as Markdown, after each
part of its work, and returns when its time is up.
"""
