"""Pretraining a small T5 on plain text: corpus, vocabulary, span corruption, loop, evaluation.

How the packaged t5_tiny_en was made. Not part of the wheel: t5ts only reads the result.
"""
