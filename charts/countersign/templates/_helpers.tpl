{{- /* Names are fixed: a node has one driver of this name, a cluster one release of this chart. */}}

{{- define "countersign.labels" -}}
app.kubernetes.io/name: countersign
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "countersign.selector" -}}
app.kubernetes.io/name: countersign
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- /* An image by digest when there is one. Takes (dict "image" … "chart" .Chart). */}}
{{- define "countersign.image" -}}
{{- if .image.digest -}}
{{ .image.repository }}@{{ .image.digest }}
{{- else -}}
{{ .image.repository }}:{{ .image.tag | default .chart.AppVersion }}
{{- end }}
{{- end }}

{{- /* What every container of ours but the driver runs under: Pod Security "restricted". */}}
{{- define "countersign.restricted" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "countersign.logging" -}}
- name: COUNTERSIGN_LOG_LEVEL
  value: {{ .Values.logLevel }}
- name: COUNTERSIGN_LOG_FORMAT
  value: {{ .Values.logFormat }}
{{- end }}

{{- /* Mebibytes of a quantity in Mi or Gi; the schema allows no other. */}}
{{- define "countersign.mebibytes" -}}
{{- if hasSuffix "Gi" . -}}
{{ mul (trimSuffix "Gi" . | int) 1024 }}
{{- else -}}
{{ trimSuffix "Mi" . | int }}
{{- end }}
{{- end }}

{{- /* Measured: 10 MiB at rest and 18 MiB with 250 volumes, beside their files. */}}
{{- define "countersign.agentResources" -}}
{{- if .Values.agent.resources -}}
{{ toYaml .Values.agent.resources }}
{{- else -}}
{{- $budget := include "countersign.mebibytes" .Values.volumes.nodeBudget | int -}}
requests:
  cpu: 10m
  memory: {{ add 24 $budget }}Mi
limits:
  memory: {{ add 64 (mul 2 $budget) }}Mi
{{- end }}
{{- end }}

{{- /* Measured: 7 MiB with 250 volumes. */}}
{{- define "countersign.driverResources" -}}
{{- if .Values.driver.resources -}}
{{ toYaml .Values.driver.resources }}
{{- else -}}
requests:
  cpu: 10m
  memory: 16Mi
limits:
  memory: 64Mi
{{- end }}
{{- end }}

{{- define "countersign.issuerResources" -}}
{{- if .Values.issuer.resources -}}
{{ toYaml .Values.issuer.resources }}
{{- else -}}
requests:
  cpu: 10m
  memory: 32Mi
limits:
  memory: 128Mi
{{- end }}
{{- end }}

{{- define "countersign.issuerAddress" -}}
{{ .Values.issuer.address | default (printf "countersign-issuer.%s.svc:8443" .Release.Namespace) }}
{{- end }}

{{- /* How pods are given their volume: policy/v1, policy/v1beta1, webhook, or nothing. */}}
{{- define "countersign.injection" -}}
{{- $v1 := .Capabilities.APIVersions.Has "admissionregistration.k8s.io/v1/MutatingAdmissionPolicy" -}}
{{- $v1beta1 := .Capabilities.APIVersions.Has "admissionregistration.k8s.io/v1beta1/MutatingAdmissionPolicy" -}}
{{- if not .Values.injection.enabled -}}
{{- else if eq .Values.injection.mode "webhook" -}}
webhook
{{- else if $v1 -}}
policy/v1
{{- else if $v1beta1 -}}
policy/v1beta1
{{- else if eq .Values.injection.mode "policy" -}}
{{ fail "injection.mode is policy, but this cluster serves no MutatingAdmissionPolicy (v1 since 1.36); set it to auto or webhook" }}
{{- else -}}
webhook
{{- end }}
{{- end }}

{{- /* "true" where identities come from SPIRE. */}}
{{- define "countersign.spire" -}}
{{- if hasKey .Values.spire "enabled" -}}
{{ fail "spire.enabled is not a value of this chart any more: set identity.source to spire or to embedded" }}
{{- end -}}
{{- if eq .Values.identity.source "spire" -}}
true
{{- end }}
{{- end }}

{{- /* "true" where SPIRE's Delegated Identity API may be used. */}}
{{- define "countersign.delegated" -}}
{{- if and (include "countersign.spire" .) (ne .Values.spire.api "broker") -}}
{{- if not .Values.spire.adminSocket }}
{{- fail (printf "spire.adminSocket: spire.api %s needs the admin socket of the SPIRE agent (admin_socket_path)" .Values.spire.api) }}
{{- end -}}
true
{{- end }}
{{- end }}

{{- /* "true" when the issuer runs: for identities, or for the webhook. */}}
{{- define "countersign.issuer" -}}
{{- if or (not (include "countersign.spire" .)) (eq (include "countersign.injection" .) "webhook") -}}
true
{{- end }}
{{- end }}

{{- /* "true" where pods' tokens come in the CSI secrets field. */}}
{{- define "countersign.tokensInSecrets" -}}
{{ semverCompare ">= 1.35.0-0" .Capabilities.KubeVersion.Version }}
{{- end }}

{{- define "countersign.tokensFromContext" -}}
{{- if eq (toString .Values.driver.tokensFromContext) "auto" -}}
{{ not (eq (include "countersign.tokensInSecrets" .) "true") }}
{{- else -}}
{{ .Values.driver.tokensFromContext }}
{{- end }}
{{- end }}

{{- /* "true" when the store `sops` has files. */}}
{{- define "countersign.sops" -}}
{{- $sops := .Values.sops -}}
{{- if and $sops.files $sops.existingConfigMap -}}
{{ fail "sops.files and sops.existingConfigMap: set one of them" }}
{{- end -}}
{{- if or $sops.files $sops.existingConfigMap -}}
{{- if not (or $sops.ageKey.nodePath $sops.ageKey.secret) -}}
{{ fail "sops has files and no key: set sops.ageKey.nodePath (a file on every node) or sops.ageKey.secret (a Secret of this namespace)" }}
{{- end -}}
{{- if and $sops.ageKey.nodePath $sops.ageKey.secret -}}
{{ fail "sops.ageKey.nodePath and sops.ageKey.secret: set one of them" }}
{{- end -}}
{{- if .Values.stores.sops -}}
{{ fail "stores.sops: the embedded store has that name already; give yours another" }}
{{- end -}}
true
{{- end }}
{{- end }}

{{- /* The agent's configuration file. */}}
{{- define "countersign.config" -}}
{{- $stores := deepCopy .Values.stores -}}
{{- if include "countersign.sops" . -}}
{{- $own := list (dict "id" (printf "spiffe://%s/ns/*/sa/*" .Values.trustDomain) "paths" (list "{ns}/**")) -}}
{{- $sops := dict "type" "sops" "directory" "/etc/countersign/sops" "ageKeyFile" "/etc/countersign/age/age.key" "allow" (.Values.sops.allow | default $own) -}}
{{- $_ := set $stores "sops" $sops -}}
{{- end -}}
{{ toYaml (dict "stores" $stores) }}
{{- end }}

{{- /* A key of the ConfigMap of sops.files: they cannot hold a slash. */}}
{{- define "countersign.sopsKey" -}}
{{ regexReplaceAll "[^A-Za-z0-9._-]" . "_" | trunc 180 }}.{{ sha256sum . | trunc 12 }}
{{- end }}
