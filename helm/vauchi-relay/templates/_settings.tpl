{{/* The RELAY_* variables: RELAY_MAX_CONNECTIONS is config.maxConnections. values.schema.json has the list. */}}
{{- define "vauchi-relay.settings" -}}
{{- $config := deepCopy .Values.config -}}
{{- if and .Values.ingress.enabled (not (hasKey $config "trustedProxies")) -}}
{{- $_ := set $config "trustedProxies" (include "vauchi-relay.privateNetworks" .) -}}
{{- end -}}
{{- $origins := include "vauchi-relay.origins" . -}}
{{- if and $origins (not (hasKey $config "publicOrigins")) -}}
{{- $_ := set $config "publicOrigins" $origins -}}
{{- end -}}
{{- range $key, $value := $config }}
{{ printf "RELAY_%s" (regexReplaceAll "([A-Z])" $key "_${1}" | upper) }}: {{ include "vauchi-relay.value" $value | quote }}
{{- end }}
{{- if eq .Values.config.storageBackend "sqlite" }}
RELAY_DATA_DIR: /data
{{- end }}
{{- if .Values.secret.existingSecret }}
RELAY_SECRET_FILE: /run/secrets/vauchi-relay/secret/relay-secret
{{- end }}
{{- if include "vauchi-relay.tokenSecret" . }}
RELAY_METRICS_TOKEN_FILE: /run/secrets/vauchi-relay/token/metrics-token
{{- end }}
{{- with .Values.logFilter }}
RUST_LOG: {{ . | quote }}
{{- end }}
{{- end }}

{{/* Where an ingress controller's pods are, as far as a chart can know: otherwise all clients would share one address. */}}
{{- define "vauchi-relay.privateNetworks" -}}
10.0.0.0/8,172.16.0.0/12,192.168.0.0/16,fc00::/7
{{- end }}

{{/* The hosts that clients dial, where the Ingress has them all: its own, and the Service's for clients in the cluster.
     Empty where a wildcard or another way in has more, or where there are more than the relay takes. */}}
{{- define "vauchi-relay.origins" -}}
{{- $hosts := list -}}
{{- range .Values.ingress.hosts -}}
{{- $hosts = append $hosts (lower .host) -}}
{{- end -}}
{{- $isKnown := and .Values.ingress.enabled (eq .Values.service.type "ClusterIP") (not (contains "*" (join "" $hosts))) -}}
{{- $service := include "vauchi-relay.fullname" . -}}
{{- $port := has (int .Values.service.port) (list 80 443) | ternary "" (printf ":%d" (int .Values.service.port)) -}}
{{- range list "" ".NS" ".NS.svc" ".NS.svc.cluster.local" -}}
{{- $hosts = append $hosts (printf "%s%s%s" $service (replace "NS" $.Release.Namespace .) $port) -}}
{{- end -}}
{{- if and $isKnown (le (len $hosts) 16) -}}
{{ join "," $hosts }}
{{- end -}}
{{- end }}

{{/* A value as the relay reads it. Helm turns large numbers into 1e+10, which is not a number of ours. */}}
{{- define "vauchi-relay.value" -}}
{{- if kindIs "slice" . -}}
{{ join "," . }}
{{- else if and (kindIs "float64" .) (eq (float64 (int64 .)) .) -}}
{{ int64 . }}
{{- else -}}
{{ . }}
{{- end -}}
{{- end }}
