"""A real worker with a renderer that only pretends: for what is about processes, and not about pictures.

`python -m tests.pretend worker …` is `renderkiln worker …`; its renderer is a real process with the real loop, and an
engine that sleeps for each step and draws noise. It starts in a tenth of the time of one that brings torch.
"""
