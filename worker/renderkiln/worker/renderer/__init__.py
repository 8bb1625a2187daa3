"""The renderer: the supervisor's child process, which holds the models and stays warm from job to job."""
