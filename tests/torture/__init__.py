"""Tries to break everything that can be broken from outside; see `python -m tests.torture --help`.

A *kind* draws a *trial* from a seed: what it will do, in words, and the doing, which raises an
AssertionError where something got lost, went wrong without a word or ended in a traceback. Kinds
stand in the modules of this folder by what they torture; `kinds.KINDS` lists them.
"""
