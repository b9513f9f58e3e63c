"""Attribution graphs here and in circuit-tracer: the same weights, prompt, batch size and limit of nodes, one thread,
each in processes of its own.

cases    the models, dictionaries and prompts
worker   one graph made here, timed
tracer   one graph made by circuit-tracer, timed where it is installed
"""
