"""The steps of the flows, one file each: Prefect tasks around functions of sft and jobs."""
