"""The job without HTTP or torch: submit, follow, list and cancel; what is stored; the local stack."""
