{{/* Values that are right one by one and wrong together, or that need a reason said. The schema refuses the rest. */}}
{{- define "vauchi-relay.validate" -}}
{{- $faults := list -}}
{{- if gt (int .Values.replicaCount) 1 -}}
{{- $faults = append $faults "replicaCount: a relay keeps its blobs in a folder of its own, so a second one would be another relay, and clients of one would not find the blobs of the other; use 1" -}}
{{- end -}}
{{- if .Values.autoscaling.enabled -}}
{{- $faults = append $faults (printf "autoscaling.enabled: with config.storageBackend=%s there can only be one relay, because storage is not shared; use false, and see resources and config.maxConnections for more room" .Values.config.storageBackend) -}}
{{- end -}}
{{- $drain := add (int .Values.config.drainDelaySecs) (int .Values.config.drainTimeoutSecs) -}}
{{- if le (int .Values.terminationGracePeriodSeconds) (int $drain) -}}
{{- $faults = append $faults (printf "terminationGracePeriodSeconds: %d s is not longer than the drain (config.drainDelaySecs + config.drainTimeoutSecs = %d s), so the relay would be killed in it; use at least %d" (int .Values.terminationGracePeriodSeconds) (int $drain) (int (add $drain 5))) -}}
{{- end -}}
{{- if and .Values.ingress.enabled (not .Values.ingress.hosts) -}}
{{- $faults = append $faults "ingress.hosts: the Ingress is enabled and has no host; use for example --set ingress.hosts[0].host=relay.example.com" -}}
{{- end -}}
{{- if and .Values.metrics.token.value .Values.metrics.token.existingSecret -}}
{{- $faults = append $faults "metrics.token: value and existingSecret are both set; keep one" -}}
{{- end -}}
{{- if eq .Values.config.storageBackend "memory" -}}
{{- if .Values.persistence.existingClaim -}}
{{- $faults = append $faults "persistence.existingClaim: config.storageBackend=memory keeps nothing on a volume; remove the claim, or use sqlite" -}}
{{- end -}}
{{- if .Values.backup.enabled -}}
{{- $faults = append $faults "backup.enabled: config.storageBackend=memory has nothing to back up; use sqlite" -}}
{{- end -}}
{{- else if and .Values.backup.enabled (not .Values.persistence.enabled) -}}
{{- $faults = append $faults "backup.enabled: without persistence there is no volume to back up; use persistence.enabled=true" -}}
{{- end -}}
{{- if and .Values.backup.enabled (has "ReadWriteOncePod" .Values.persistence.accessModes) -}}
{{- $faults = append $faults "backup.enabled: the backup's pod mounts the relay's volume beside it, which persistence.accessModes=[ReadWriteOncePod] forbids; use ReadWriteOnce" -}}
{{- end -}}
{{- if and .Values.service.nodePort (eq .Values.service.type "ClusterIP") -}}
{{- $faults = append $faults "service.nodePort: a ClusterIP has none; use service.type=NodePort or LoadBalancer" -}}
{{- end -}}
{{- if and .Values.service.loadBalancerSourceRanges (ne .Values.service.type "LoadBalancer") -}}
{{- $faults = append $faults "service.loadBalancerSourceRanges: only a LoadBalancer has them; use service.type=LoadBalancer" -}}
{{- end -}}
{{- if $faults -}}
{{- fail (printf "\n%s" (join "\n" $faults)) -}}
{{- end -}}
{{- end }}
