"""The processes of a job, as the system lists them."""

import psutil


def find_processes(job_id: str) -> list[int]:
    """Every process of a job, its children included."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("PREFECT__FLOW_RUN_ID") == job_id:
                found.append(process.pid)
        except psutil.Error:  # gone, or another user's
            continue
    return found
