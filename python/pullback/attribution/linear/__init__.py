"""The linear engine: target vectors pulled down the frozen model, without autograd and without copies of the prompt.

sweep               the order of steps, from the top of the stream down
side_by_side        targets of several prompts at once, in large products: any model and device
prompt_by_prompt    a few targets of one prompt at a time, compiled: small models, on a CPU
columns, table      which vectors the targets read, each worked with once
taken               targets that stand above an attention, before they are spread over positions
"""
