"""Pretraining a small T5 on plain text: corpus, vocabulary, span corruption, loop, evaluation.

Apart from the rest of t5ts, which only reads what comes out of here: `python -m t5ts.pretrain`.
"""
