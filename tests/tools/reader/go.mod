module countersign.dev/tests/tools/reader

go 1.26.6

tool countersign.dev/tests/tools/reader

require software.sslmate.com/src/go-pkcs12 v0.7.4

require golang.org/x/crypto v0.59.0 // indirect
