"""A CronJob and the claim of its volume, for Kubernetes 1.29 or newer."""

from __future__ import annotations

import json
import re

from pipeline.errors import ConfigError
from pipeline.schedule.exporters.job import (
    BUSY_CODE,
    REFUSED_CODE,
    STOP_SECONDS,
    TERMINATED_CODE,
    ExportJob,
    format_jitter_sleep,
    get_time_zone,
    require_cron,
    require_cron_fields,
)
from pipeline.schedule.timing import describe_timing

_DAY_SECONDS = 86_400
# 52 characters with `alexnet-`, so that the name of a Job still fits
_KUBERNETES_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,42}[a-z0-9])?", re.ASCII)

_TRAP = """trap 'kill -TERM "$child"' TERM\n"""
_SHELL = f"""\
alexnet "$@" &
child=$!
code=0
wait "$child" || code=$?
# A signal ends `wait` before the program has ended.
while kill -0 "$child" 2>/dev/null; do code=0; wait "$child" || code=$?; done
# The gate refused the new model: a decision, and no failure of the Job.
if [ "$code" -eq {REFUSED_CODE} ]; then exit 0; fi
exit "$code"
"""


def write_kubernetes_manifest(job: ExportJob) -> dict[str, str]:
    """Return the manifest of a CronJob and its volume claim, by its name."""
    if not _KUBERNETES_NAME.fullmatch(job.name):
        raise ConfigError(
            f"Kubernetes cannot call anything {job.name!r}",
            expected="at most 44 small letters, digits and -, a letter or digit at both ends",
            hint="Name the schedule otherwise with --name",
        )
    name, cron = f"alexnet-{job.name}", require_cron(job, "Kubernetes")
    fields = require_cron_fields(job, "Kubernetes")
    # Of more than a hundred missed times Kubernetes makes up for none: an hour has sixty at most.
    deadline = _DAY_SECONDS if len(cron.minutes) * len(cron.hours) < 100 else 3600
    wait = format_jitter_sleep(job, f' &\nchild=$!\nwait "$child" || exit {TERMINATED_CODE}\n')
    shell = "".join(f"                  {line}\n" for line in (_TRAP + wait + _SHELL).splitlines())
    arguments = "".join(
        f"                - {_quote_yaml(word.replace('$', '$$'))}\n" for word in job.arguments
    )
    text = f"""\
# Retraining, schedule {job.name}: {describe_timing(job.timing)}. Replace the image, and look at the
# claim and the resources.
# For Kubernetes 1.29 or newer.
#
#   kubectl apply -f {name}.yaml
#   kubectl create job --from=cronjob/{name} {name}-now      # one scheduled run now
#   kubectl delete cronjob {name}                            # ends the schedule; the claim, and
# every result, stays
#
# `kubectl delete -f {name}.yaml` would remove the claim, too.
apiVersion: v1
kind: PersistentVolumeClaim
metadata:
  name: {name}
spec:
  accessModes: [ReadWriteOnce] # one pod at a time writes
  resources:
    requests:
      storage: 100Gi
---
apiVersion: batch/v1
kind: CronJob
metadata:
  name: {name}
spec:
  schedule: {_quote_yaml(fields)}
  timeZone: {_quote_yaml(get_time_zone(job.timing))}
  # No overlap: a time that comes while a scheduled run is worked on is left out, and the ledger has
  # the next.
  concurrencyPolicy: Forbid
  # How much later a missed time is made up for.
  startingDeadlineSeconds: {deadline}
  jobTemplate:
    spec:
      # Tries after a lost pod, or while another command holds the work directory; pauses grow from
      # 10 seconds to 6 minutes.
      backoffLimit: 8
      podReplacementPolicy: Failed # two pods would be two writers
      podFailurePolicy:
        rules:
          # A drained or pre-empted machine is nobody's fault: the next pod goes on from the last
          # checkpoint.
          - action: Ignore
            onPodConditions:
              - type: DisruptionTarget
                status: "True"
          # {BUSY_CODE}: busy. 137, {TERMINATED_CODE}: killed, or out of memory. Anything else the
          # command has tried again by itself.
          - action: FailJob
            onExitCodes:
              containerName: alexnet
              operator: NotIn
              values: [{BUSY_CODE}, 137, {TERMINATED_CODE}]
      template:
        metadata:
          labels:
            app.kubernetes.io/name: {name}
        spec:
          restartPolicy: Never # podFailurePolicy asks for it
          # Time to save after SIGTERM. The default of 30 seconds is short for a large network and
          # slow storage.
          terminationGracePeriodSeconds: {STOP_SECONDS}
          automountServiceAccountToken: false # it asks nothing of Kubernetes
          containers:
            - name: alexnet
              # REPLACE: an image with this package installed. Upper case is no valid name, so that
              # nothing is fetched by mistake.
              image: REPLACE-WITH-YOUR-IMAGE
              workingDir: {_quote_yaml(job.folder)}
              command:
                - sh
                - -c
                - |
{shell}                - alexnet # the shell's $0
              args:
{arguments}              resources:
                requests:
                  cpu: "4"
                  memory: 8Gi
                # One GPU, with NVIDIA's device plugin and an image that has "alexnet-
                # pipeline[gpu]":
                # limits:
                #   nvidia.com/gpu: 1
              volumeMounts:
                - name: work
                  mountPath: {_quote_yaml(job.folder)} # the work directory, and data beside it
          volumes:
            - name: work
              persistentVolumeClaim:
                claimName: {name}
"""
    return {f"{name}.yaml": text}


def _quote_yaml(word: str) -> str:
    """Return a word as a YAML scalar; JSON's strings are such."""
    return json.dumps(word, ensure_ascii=False)
