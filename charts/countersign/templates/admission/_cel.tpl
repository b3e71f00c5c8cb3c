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

{{- /* Keys that the agent knows; charts/test compares them with its list. */}}
{{- define "countersign.cel.known" -}}
k.matches('^((secret|template|jwt)[.]countersign[.]dev/.+|svid[.]countersign[.]dev/x509|countersign[.]dev/(inject|path|containers|refresh|on-revoked|stale-ok))$')
{{- end }}
