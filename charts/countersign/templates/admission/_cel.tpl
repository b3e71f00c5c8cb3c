{{- /* CEL that more than one policy needs. Each is an expression on its own. */}}

{{- /* Keys under our domains. A key has one slash at most, so what comes before ".countersign.dev/" is part of its domain. */}}
{{- define "countersign.cel.ours" -}}
k.startsWith('countersign.dev/') || k.contains('.countersign.dev/')
{{- end }}

{{- define "countersign.cel.defaultPath" -}}
/var/run/secrets/countersign
{{- end }}

{{- /* An absolute path without segments that climb, without a slash at its end. */}}
{{- define "countersign.cel.sound" -}}
variables.path.matches('^(/[^/:\\x00-\\x1f\\x7f]+)+$') && !variables.path.matches('/[.][.]?(/|$)')
{{- end }}

{{- /* Keys that the agent knows; charts/test compares them with its own list. `files` take a file's name after the slash. */}}
{{- define "countersign.keys" -}}
files: [secret, template, jwt, bundle]
svid: [x509, pem, der, p12, p12-truststore, jks-truststore, folder, hint]
plain: [inject, path, containers, refresh, on-revoked, stale-ok, on-change]
{{- end }}

{{- define "countersign.cel.known" -}}
{{- $keys := include "countersign.keys" . | fromYaml -}}
k.matches('^(({{ join "|" $keys.files }})[.]countersign[.]dev/.+|svid[.]countersign[.]dev/({{ join "|" $keys.svid }})|countersign[.]dev/({{ join "|" $keys.plain }}))$')
{{- end }}

{{- define "countersign.knownKeys" -}}
{{- $keys := include "countersign.keys" . | fromYaml -}}
known are {{ range $keys.files }}{{ . }}.countersign.dev/<file>, {{ end }}svid.countersign.dev/{{ join ", " $keys.svid }} and countersign.dev/{{ join ", " $keys.plain }}
{{- end }}
