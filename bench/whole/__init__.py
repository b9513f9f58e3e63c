"""Whole training runs: a model, tokens, and transcoders of all its layers, each library through its own trainer.

cases      the models, and the settings that all trainers share
twin       tiny-mix as a model of transformers
trainers   how each library is asked to train
worker     one run, in a process of its own
harvest    what recording all layers costs beside the model's bare forward pass
"""
