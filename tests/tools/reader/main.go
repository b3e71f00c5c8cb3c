// reader is a program as users write them in Go, which takes its TLS identity from the files of a volume:
//
//	reader serve VOLUME ADDRESS     serves TLS with tls.crt and tls.key, and asks clients for a certificate of ca.crt;
//	                                follows the volume without a restart
//	reader p12 KEYSTORE TRUSTSTORE  prints how many certificates each has, once the key has proved to be the first one's
package main

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"

	"software.sslmate.com/src/go-pkcs12"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "reader:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) != 3 {
		return errors.New("write: reader serve VOLUME ADDRESS, or reader p12 KEYSTORE TRUSTSTORE")
	}
	switch args[0] {
	case "serve":
		return serve(args[1], args[2])
	case "p12":
		return read(args[1], args[2])
	}
	return fmt.Errorf("%s is neither serve nor p12", args[0])
}

// files keeps what was loaded last, and looks on each handshake whether ..data points elsewhere.
type files struct {
	volume string

	mu         sync.Mutex
	generation string
	config     *tls.Config
}

func (f *files) forClient(*tls.ClientHelloInfo) (*tls.Config, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	generation, err := os.Readlink(filepath.Join(f.volume, "..data"))
	if err != nil || generation == f.generation {
		return f.config, err
	}
	// Through the generation, not through ..data: both files are of one moment.
	at := func(name string) string { return filepath.Join(f.volume, generation, name) }
	pair, err := tls.LoadX509KeyPair(at("tls.crt"), at("tls.key"))
	if err != nil {
		return nil, err
	}
	roots, err := os.ReadFile(at("ca.crt"))
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(roots) {
		return nil, errors.New("no certificate in ca.crt")
	}
	f.generation = generation
	f.config = &tls.Config{
		Certificates: []tls.Certificate{pair},
		ClientAuth:   tls.VerifyClientCertIfGiven,
		ClientCAs:    pool,
	}
	return f.config, nil
}

func serve(volume, address string) error {
	f := &files{volume: volume}
	if _, err := f.forClient(nil); err != nil {
		return err
	}
	listener, err := tls.Listen("tcp", address, &tls.Config{GetConfigForClient: f.forClient})
	if err != nil {
		return err
	}
	for {
		connection, err := listener.Accept()
		if err != nil {
			return err
		}
		go greet(connection)
	}
}

// greet says who the client is, by its certificate.
func greet(connection net.Conn) {
	defer connection.Close()
	secured, ok := connection.(*tls.Conn)
	if !ok {
		return
	}
	if err := secured.Handshake(); err != nil {
		fmt.Fprintln(os.Stderr, "handshake:", err)
		return
	}
	who := "nobody"
	if certificates := secured.ConnectionState().PeerCertificates; len(certificates) > 0 && len(certificates[0].URIs) == 1 {
		who = certificates[0].URIs[0].String()
	}
	fmt.Fprintf(secured, "hello %s\n", who)
}

func read(keystore, truststore string) error {
	const password = "changeit"
	data, err := os.ReadFile(keystore)
	if err != nil {
		return err
	}
	key, leaf, more, err := pkcs12.DecodeChain(data, password)
	if err != nil {
		return fmt.Errorf("%s: %w", keystore, err)
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return fmt.Errorf("%s: the key is a %T", keystore, key)
	}
	if public, ok := signer.Public().(*ecdsa.PublicKey); !ok || !public.Equal(leaf.PublicKey) {
		return fmt.Errorf("%s: the key is not the certificate's", keystore)
	}
	if data, err = os.ReadFile(truststore); err != nil {
		return err
	}
	trusted, err := pkcs12.DecodeTrustStore(data, password)
	if err != nil {
		return fmt.Errorf("%s: %w", truststore, err)
	}
	fmt.Println(1+len(more), len(trusted), leaf.URIs)
	return nil
}
