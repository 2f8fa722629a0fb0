{{/* The release's name where it says vauchi-relay already, else RELEASE-vauchi-relay. 44 characters leave room for our
     suffixes and for what controllers append, within 63. */}}
{{- define "vauchi-relay.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 44 | trimSuffix "-" -}}
{{- end }}

{{- define "vauchi-relay.fullname" -}}
{{- $name := include "vauchi-relay.name" . -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 44 | trimSuffix "-" -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 44 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 44 | trimSuffix "-" -}}
{{- end -}}
{{- end }}

{{/* What finds the relay's pods; never changes, because selectors cannot. */}}
{{- define "vauchi-relay.selector" -}}
app: vauchi-relay
app.kubernetes.io/name: {{ include "vauchi-relay.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{/* On what is not the relay's pod, but belongs to it: no `app`, so that no Service sends clients there. */}}
{{- define "vauchi-relay.common" -}}
app.kubernetes.io/name: {{ include "vauchi-relay.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "vauchi-relay.labels" -}}
app: vauchi-relay
{{ include "vauchi-relay.common" . }}
{{- end }}

{{- define "vauchi-relay.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end }}

{{- define "vauchi-relay.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{ .Values.serviceAccount.name | default (include "vauchi-relay.fullname" .) }}
{{- else -}}
{{ .Values.serviceAccount.name | default "default" }}
{{- end -}}
{{- end }}

{{/* The Secret of the metrics token; empty without a token. */}}
{{- define "vauchi-relay.tokenSecret" -}}
{{- if .Values.metrics.token.existingSecret -}}
{{ .Values.metrics.token.existingSecret }}
{{- else if .Values.metrics.token.value -}}
{{ include "vauchi-relay.fullname" . }}-metrics-token
{{- end -}}
{{- end }}

{{/* The claim of the relay's data; empty without one. */}}
{{- define "vauchi-relay.claim" -}}
{{- if and .Values.persistence.enabled (eq .Values.config.storageBackend "sqlite") -}}
{{- .Values.persistence.existingClaim | default (printf "data-%s-0" (include "vauchi-relay.fullname" .)) -}}
{{- end -}}
{{- end }}
