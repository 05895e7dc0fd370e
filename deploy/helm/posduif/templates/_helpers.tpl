{{- define "posduif.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 50 | trimSuffix "-" -}}
{{- end -}}

{{/* Names end in -replicator, so they are shorter than the 63 characters of a label. */}}
{{- define "posduif.fullname" -}}
{{- $name := include "posduif.name" . -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "posduif.selector" -}}
app.kubernetes.io/name: {{ include "posduif.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "posduif.labels" -}}
{{ include "posduif.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "posduif.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "posduif.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{/* A setting of `config`, else its default: (list $ "section" "key" default). A section without keys is null. */}}
{{- define "posduif.setting" -}}
{{- $section := get (first .).Values.config (index . 1) | default dict -}}
{{- $value := ternary (get $section (index . 2)) (index . 3) (hasKey $section (index . 2)) -}}
{{- /* Numbers of YAML are fractions here, which are printed with an exponent. */ -}}
{{- ternary (int64 $value) $value (kindIs "float64" $value) -}}
{{- end -}}

{{- define "posduif.grace" -}}
{{- include "posduif.setting" (list . "server" "shutdown_grace_seconds" 10) -}}
{{- end -}}

{{/* The largest body of a request in bytes. */}}
{{- define "posduif.bodyBytes" -}}
{{- $body := include "posduif.setting" (list . "server" "body_bytes_max" 1048576) | int64 -}}
{{- $upload := include "posduif.setting" (list . "sync" "upload_bytes_max" 8388608) | int64 -}}
{{- $state := include "posduif.setting" (list . "state" "batch_bytes_max" 8388608) | int64 -}}
{{- max $body $upload $state -}}
{{- end -}}

{{/* What an engine finds in each secret, and which roles need it. */}}
{{- define "posduif.secrets" -}}
- {value: postgresUrl, variable: POSDUIF__POSTGRES__URL, roles: [api, replicator], required: true}
- {value: redisUrl, variable: POSDUIF__REDIS__URL, roles: [api, replicator], required: true}
- {value: jwtSecret, variable: POSDUIF__AUTH__JWT_SECRET, roles: [api], required: true}
- {value: jwtPreviousSecrets, variable: POSDUIF__AUTH__JWT_PREVIOUS_SECRETS, roles: [api]}
- {value: adminToken, variable: POSDUIF__ADMIN__TOKEN, roles: [api, replicator]}
- {value: pushWebhookSecret, variable: POSDUIF__PUSH__WEBHOOK_SECRET, roles: [replicator]}
- {value: pushWebhookPreviousSecrets, variable: POSDUIF__PUSH__WEBHOOK_PREVIOUS_SECRETS, roles: [replicator]}
- {value: mailWebhookSecret, variable: POSDUIF__MAIL__WEBHOOK_SECRET, roles: [api]}
- {value: mailWebhookPreviousSecrets, variable: POSDUIF__MAIL__WEBHOOK_PREVIOUS_SECRETS, roles: [api]}
- {value: otlpHeaders, variable: POSDUIF__TELEMETRY__OTLP_HEADERS, roles: [api, replicator]}
{{- end -}}

{{/* The file of settings. Those that the environment or a secret determines would have no effect in it. */}}
{{- define "posduif.config" -}}
{{- $config := .Values.config -}}
{{- range list "server.host" "server.port" "admin.listen" -}}
{{- $path := splitList "." . -}}
{{- if hasKey (get $config (first $path) | default dict) (last $path) -}}
{{- fail (printf "config.%s: the chart sets it; remove it from the values" .) -}}
{{- end -}}
{{- end -}}
{{- range include "posduif.secrets" . | fromYamlArray -}}
{{- $path := trimPrefix "POSDUIF__" .variable | lower | splitList "__" -}}
{{- if hasKey (get $config (first $path) | default dict) (last $path) -}}
{{- fail (printf "config.%s is a secret, and a ConfigMap is not: name a Secret in secrets.%s" (join "." $path) .value) -}}
{{- end -}}
{{- end -}}
{{- $public := include "posduif.setting" (list . "server" "public_url" "") -}}
{{- if and (not $public) .Values.ingress.enabled .Values.ingress.hosts -}}
{{- $url := printf "%s://%s" (ternary "https" "http" (not (empty .Values.ingress.tls))) (first .Values.ingress.hosts) -}}
{{- $server := merge (dict "public_url" $url) (get $config "server" | default dict) -}}
{{- $config = merge (dict "server" $server) $config -}}
{{- end -}}
{{- toYaml $config -}}
{{- end -}}

{{/* A pod of a role; called with `root`, `role` and `values` of the role. */}}
{{- define "posduif.pod" -}}
{{- $root := .root -}}
{{- $role := .role -}}
{{- $values := .values -}}
{{- $image := merge (deepCopy $values.image) $root.Values.image -}}
{{/* A tag of the role has precedence over the digest of all. */}}
{{- if and $values.image.tag (not $values.image.digest) -}}
{{- $image = omit $image "digest" -}}
{{- end -}}
{{- $any := ternary "[::]" "0.0.0.0" $root.Values.ipv6 -}}
{{- $secrets := list -}}
{{- range include "posduif.secrets" $root | fromYamlArray -}}
{{- if has $role .roles -}}
{{- $reference := get $root.Values.secrets .value -}}
{{- if $reference.secret -}}
{{- $secrets = append $secrets (dict "variable" .variable "secret" $reference.secret "key" $reference.key) -}}
{{- else if .required -}}
{{- fail (printf "secrets.%s.secret is empty: name the Secret with %s" .value .variable) -}}
{{- end -}}
{{- end -}}
{{- end -}}
metadata:
  labels:
    {{- include "posduif.selector" $root | nindent 4 }}
    app.kubernetes.io/component: {{ $role }}
    {{- with $values.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  annotations:
    checksum/config: {{ include "posduif.config" $root | sha256sum }}
    {{- with $values.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  serviceAccountName: {{ include "posduif.serviceAccount" $root }}
  automountServiceAccountToken: false
  # Variables of Services would have the prefix POSDUIF_.
  enableServiceLinks: false
  {{- with $root.Values.imagePullSecrets }}
  imagePullSecrets:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  securityContext:
    {{- toYaml $root.Values.podSecurityContext | nindent 4 }}
  {{- if eq $role "api" }}
  # The pause before the stop, server.shutdown_grace_seconds, and the time to close what is left.
  terminationGracePeriodSeconds: {{ add $values.preStopSeconds (include "posduif.grace" $root | int64) 15 }}
  {{- else }}
  # server.shutdown_grace_seconds, and the time to publish the last batch.
  terminationGracePeriodSeconds: {{ add (include "posduif.grace" $root | int64) 15 }}
  {{- end }}
  {{- with $values.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  {{- with $values.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $values.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $values.affinity }}
  affinity:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  topologySpreadConstraints:
    {{- if $values.topologySpreadConstraints }}
    {{- toYaml $values.topologySpreadConstraints | nindent 4 }}
    {{- else }}
    {{- range list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
    - maxSkew: 1
      topologyKey: {{ . }}
      whenUnsatisfiable: ScheduleAnyway
      labelSelector:
        matchLabels:
          {{- include "posduif.selector" $root | nindent 10 }}
          app.kubernetes.io/component: {{ $role }}
      matchLabelKeys: [pod-template-hash]
    {{- end }}
    {{- end }}
  containers:
    - name: posduif
      {{- if $image.digest }}
      image: {{ printf "%s@%s" $image.repository $image.digest | quote }}
      {{- else }}
      image: {{ printf "%s:%s" $image.repository (default $root.Chart.AppVersion $image.tag) | quote }}
      {{- end }}
      imagePullPolicy: {{ $image.pullPolicy }}
      args: [serve, --role, {{ $role }}]
      env:
        # For the commands of `kubectl exec`, too.
        - name: POSDUIF_CONFIG
          value: /etc/posduif/config/config.yaml
        - name: POSDUIF__SERVER__HOST
          # A name is resolved, so without brackets.
          value: {{ $any | trimPrefix "[" | trimSuffix "]" | quote }}
        - name: POSDUIF__SERVER__PORT
          value: "8080"
        # Probes come to the address of the pod. The NetworkPolicy keeps others away.
        - name: POSDUIF__ADMIN__LISTEN
          value: {{ printf "%s:8081" $any | quote }}
        - name: POSDUIF__LOG__FORMAT
          value: {{ include "posduif.setting" (list $root "log" "format" "json") | quote }}
        {{- range $secrets }}
        - name: {{ .variable }}__FILE
          value: {{ printf "/run/posduif/secrets/%s" (trimPrefix "POSDUIF__" .variable | lower) }}
        {{- end }}
        # The other role sends these, and has the secret that the setting needs.
        - name: {{ ternary "POSDUIF__PUSH__WEBHOOK_URL" "POSDUIF__MAIL__WEBHOOK_URL" (eq $role "api") }}
          value: ""
        {{- with $values.extraEnv }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      ports:
        - {name: http, containerPort: 8080}
        - {name: admin, containerPort: 8081}
      # An engine listens after its migrations, which may take long. A stop in between would roll them back.
      startupProbe:
        httpGet: {path: /health, port: admin}
        periodSeconds: 2
        failureThreshold: 1800
      # Not /ready: a restart does not help while Postgres or Redis is away.
      livenessProbe:
        httpGet: {path: /health, port: admin}
        periodSeconds: 10
        timeoutSeconds: 5
        failureThreshold: 6
      {{- if eq $role "api" }}
      # A new pod gets connections when clients would see fresh data.
      readinessProbe:
        httpGet: {path: /ready, port: admin}
        periodSeconds: 5
        timeoutSeconds: 3
        failureThreshold: {{ $values.unreadyPeriods | int }}
      lifecycle:
        preStop:
          exec:
            command: [sleep, {{ $values.preStopSeconds | quote }}]
      {{- else }}
      # Passes for one that waits for the slot while another one streams: a rollout starts the next one, then stops the old.
      readinessProbe:
        httpGet: {path: /ready, port: admin}
        periodSeconds: 5
        timeoutSeconds: 3
        failureThreshold: 3
      {{- end }}
      resources:
        {{- toYaml $values.resources | nindent 8 }}
      securityContext:
        allowPrivilegeEscalation: false
        readOnlyRootFilesystem: true
        privileged: false
        capabilities:
          drop: [ALL]
      volumeMounts:
        - {name: config, mountPath: /etc/posduif/config, readOnly: true}
        - {name: secrets, mountPath: /run/posduif/secrets, readOnly: true}
        {{- if or $root.Values.certificates.secret $root.Values.certificates.configMap }}
        - {name: certificates, mountPath: /etc/posduif/certificates, readOnly: true}
        {{- end }}
        {{- with $values.extraVolumeMounts }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
  volumes:
    - name: config
      configMap:
        name: {{ include "posduif.fullname" $root }}
    - name: secrets
      projected:
        defaultMode: 0440
        sources:
          {{- range $secrets }}
          - secret:
              name: {{ .secret | quote }}
              items: [{key: {{ .key | quote }}, path: {{ trimPrefix "POSDUIF__" .variable | lower }}}]
          {{- end }}
    {{- with $root.Values.certificates }}
    {{- if .secret }}
    - name: certificates
      secret: {secretName: {{ .secret | quote }}, defaultMode: 0440}
    {{- else if .configMap }}
    - name: certificates
      configMap: {name: {{ .configMap | quote }}}
    {{- end }}
    {{- end }}
    {{- with $values.extraVolumes }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end -}}
