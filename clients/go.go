// net/http: default|cache URL N P. Without a cache of sessions in its tls.Config it resumes none.
package main

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"sync"
)

func main() {
	pem, _ := os.ReadFile(os.Getenv("CLIENT_CA"))
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	config := &tls.Config{RootCAs: roots}
	if os.Args[1] == "cache" {
		config.ClientSessionCache = tls.NewLRUClientSessionCache(0)
	}
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: config}}
	visit := func() {
		response, err := client.Get(os.Args[2])
		if err != nil {
			panic(err)
		}
		body, _ := io.ReadAll(response.Body)
		response.Body.Close()
		fmt.Print(string(body))
	}
	oneByOne, _ := strconv.Atoi(os.Args[3])
	atOnce, _ := strconv.Atoi(os.Args[4])
	for n := 0; n < oneByOne; n++ {
		visit()
	}
	var group sync.WaitGroup
	for n := 0; n < atOnce; n++ {
		group.Add(1)
		go func() { defer group.Done(); visit() }()
	}
	group.Wait()
}
