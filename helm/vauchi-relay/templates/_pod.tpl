{{/* The relay's pod, for whichever workload runs it. */}}
{{- define "vauchi-relay.pod" -}}
{{- $token := include "vauchi-relay.tokenSecret" . -}}
{{- $sqlite := eq .Values.config.storageBackend "sqlite" -}}
metadata:
  labels:
    {{- include "vauchi-relay.selector" . | nindent 4 }}
    {{- with .Values.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  annotations:
    # Settings are read at the start, so the relay is restarted when they change.
    checksum/settings: {{ include "vauchi-relay.settings" . | sha256sum }}
    {{- with .Values.metrics.token.value }}
    checksum/token: {{ sha256sum . }}
    {{- end }}
    {{- with .Values.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  serviceAccountName: {{ include "vauchi-relay.serviceAccount" . }}
  # The relay asks nothing of the API server.
  automountServiceAccountToken: false
  # Variables of a Service called relay-… would look like settings.
  enableServiceLinks: false
  terminationGracePeriodSeconds: {{ int .Values.terminationGracePeriodSeconds }}
  securityContext:
    {{- toYaml .Values.podSecurityContext | nindent 4 }}
  {{- with .Values.imagePullSecrets }}
  imagePullSecrets:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  {{- with .Values.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.affinity }}
  affinity:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  containers:
    - name: vauchi-relay
      image: {{ include "vauchi-relay.image" . | quote }}
      imagePullPolicy: {{ .Values.image.pullPolicy }}
      args: [serve]
      envFrom:
        - configMapRef:
            name: {{ include "vauchi-relay.fullname" . }}
      {{- with .Values.extraEnv }}
      env:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      ports:
        - name: websocket
          containerPort: 8080
          protocol: TCP
        - name: metrics
          containerPort: 8081
          protocol: TCP
      # /health is 200 while the process runs, whatever the disk does: a restart does not mend a disk.
      startupProbe:
        httpGet:
          path: /health
          port: metrics
        {{- toYaml .Values.startupProbe | nindent 8 }}
      livenessProbe:
        httpGet:
          path: /health
          port: metrics
        {{- toYaml .Values.livenessProbe | nindent 8 }}
      readinessProbe:
        httpGet:
          path: /ready
          port: metrics
        {{- toYaml .Values.readinessProbe | nindent 8 }}
      resources:
        {{- toYaml .Values.resources | nindent 8 }}
      securityContext:
        {{- toYaml .Values.securityContext | nindent 8 }}
      volumeMounts:
        # SQLite's place for large sorts; the root file system is read-only.
        - name: tmp
          mountPath: /tmp
        {{- if $sqlite }}
        - name: data
          mountPath: /data
        {{- end }}
        {{- if .Values.secret.existingSecret }}
        - name: secret
          mountPath: /run/secrets/vauchi-relay/secret
          readOnly: true
        {{- end }}
        {{- if $token }}
        - name: token
          mountPath: /run/secrets/vauchi-relay/token
          readOnly: true
        {{- end }}
        {{- with .Values.extraVolumeMounts }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
  volumes:
    - name: tmp
      emptyDir: {}
    {{- if and $sqlite .Values.persistence.enabled .Values.persistence.existingClaim }}
    - name: data
      persistentVolumeClaim:
        claimName: {{ .Values.persistence.existingClaim }}
    {{- else if and $sqlite (not .Values.persistence.enabled) }}
    - name: data
      emptyDir: {}
    {{- end }}
    {{- if .Values.secret.existingSecret }}
    - name: secret
      secret:
        secretName: {{ .Values.secret.existingSecret }}
        defaultMode: 0440
        items:
          - key: {{ .Values.secret.key }}
            path: relay-secret
    {{- end }}
    {{- if $token }}
    - name: token
      secret:
        secretName: {{ $token }}
        defaultMode: 0440
        items:
          - key: {{ .Values.metrics.token.key }}
            path: metrics-token
    {{- end }}
    {{- with .Values.extraVolumes }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end }}
