"""Cut a module into consecutive layers, measure them, balance them over stages, plan the stages.

`layers` cuts (with `graph` and `probe` under it), `profile` measures, `balance` divides, `plan` chooses. All of it is
plain functions over plain PyTorch: nothing here starts a thread, a task or a stream.
"""
