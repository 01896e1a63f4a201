#!/usr/bin/env bash
# Trains on GPUs in Kubernetes as a JobSet (jobset.sigs.k8s.io): HOSTS pods of GPUS each.
#
#   bash launch/k8s/train.sh [--dry_run] NAME IMAGE HOSTS GPUS --config=... --workdir=...
#
# IMAGE holds Python with svc_jax[train,cuda]; the persistent volume claim VOLUME (svc-jax),
# with dataset and workdir, is mounted at /data, where the command runs. If one pod dies, all
# are started again and resume, at most RESTARTS times (100); an error that a user can mend
# (exit code 2) is not tried again.
set -euo pipefail
apply=(kubectl apply -f -)
[[ ${1:-} != --dry_run ]] || { apply=(cat); shift; }
(($# >= 4)) || { echo "usage: $0 [--dry_run] NAME IMAGE HOSTS GPUS FLAGS_OF_TRAIN..." >&2; exit 2; }
name=$1 image=$2 hosts=$3 gpus=$4
shift 4

"${apply[@]}" <<MANIFEST
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $name
spec:
  failurePolicy:
    maxRestarts: ${RESTARTS:-100}
    rules:
      - action: FailJobSet
        onJobFailureReasons: [PodFailurePolicy]
  replicatedJobs:
    - name: hosts
      replicas: 1
      template:
        spec:
          completionMode: Indexed
          completions: $hosts
          parallelism: $hosts
          backoffLimit: 0
          podFailurePolicy:
            rules:
              - action: FailJob
                onExitCodes: {containerName: train, operator: In, values: [2]}
          template:
            spec:
              restartPolicy: Never
              terminationGracePeriodSeconds: 120
              containers:
                - name: train
                  image: $image
                  workingDir: /data
                  command: [python, -m, svc_jax.train]
                  args:
                    - --coordinator=$name-hosts-0-0.$name:8476
                    - --num_processes=$hosts
                    - --process_id=\$(JOB_COMPLETION_INDEX)
$(for flag in "$@"; do printf "                    - '%s'\n" "${flag//\'/\'\'}"; done)
                  resources:
                    limits: {nvidia.com/gpu: $gpus}
                  volumeMounts:
                    - {name: data, mountPath: /data}
                    - {name: memory, mountPath: /dev/shm}
              volumes:
                - {name: data, persistentVolumeClaim: {claimName: ${VOLUME:-svc-jax}}}
                - {name: memory, emptyDir: {medium: Memory}}
MANIFEST
