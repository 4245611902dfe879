"""Data that users add to the service: one store of files, each a version `name@v1`, `name@v2` ... of a dataset.

A version is a tag of a git + DVC repository below the state folder, and its file lies in that repository's DVC remote
under the MD5 of its content. `jobs.service.data_adder` takes a file, `registry` reads and deletes versions, and
`naming` has the rules of names (decision 40).
"""
