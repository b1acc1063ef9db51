"""Running a study's commands elsewhere: on a Ray cluster from outside, as its jobs, or detached from the terminal.

A command with `--address http://head:8265` is the same command, run there by the cluster's job server: the code travels
(`packing`), the job is followed or left (`jobs`), and this machine remembers where the study is (`remembered`). On the cluster
`driver` runs the command, and `shipped` knows what came with it.
"""
