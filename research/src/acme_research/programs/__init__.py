"""Programs of tasks: functions of a seed that ``acme distill inject`` runs, without imports."""
